"""What a command has loaded when it answers: nothing heavy for its help, and for a training's first line little more
than torch. Times follow from that; docs/results/README.md has them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "accelerate", "datasets", "gradio", "transformers", "matplotlib", "tensorboard", "wandb", "pandas"}
PACKAGES = ("layers", "training", "data", "decoding", "gpt", "seq2seq", "launch", "demo")
FILES = [path.relative_to(ROOT) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
MAINS = [path for path in FILES if '__name__ == "__main__"' in (ROOT / path).read_text()]
INTERNAL = {
    Path("data/sources/hub_process.py"),
    *(Path("training/doctor", name) for name in ("launched.py", "rank.py")),
}
"""Started by ourselves."""
SCRIPTS = [str(path) for path in MAINS if path.parts[0] in ("launch", "demo")]
MODULES = [".".join(path.with_suffix("").parts) for path in MAINS if str(path) not in SCRIPTS and path not in INTERNAL]

RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    if sys.argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    print("loaded", *sys.modules, file=sys.stderr)
"""
TRAIN = """
import builtins, os, runpy, sys
import gpt.model
print("loaded", *sys.modules, file=sys.stderr)
said = print

def show(*values, **options):
    said(*values, flush=True)
    said("loaded", *sys.modules, file=sys.stderr, flush=True)
    os._exit(0)

builtins.print = show
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(code: str, *arguments: str, cwd: Path) -> tuple[int, str, str, list[set[str]]]:
    """Exit code, output, what else was said, and the modules that were loaded, each time that they are told."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    said = done.stderr.splitlines()
    told = [set(line.split()[1:]) for line in said if line.startswith("loaded ")]
    assert told, done.stderr
    return done.returncode, done.stdout, "\n".join(line for line in said if not line.startswith("loaded ")), told


def test_all_commands_are_known() -> None:
    assert {"launch/train_gpt.py", "launch/evaluate.py", "demo/app.py"} <= set(SCRIPTS)
    assert "data.text" in MODULES


@pytest.mark.parametrize("command", [*SCRIPTS, *MODULES])
def test_help_loads_nothing_heavy(command: str, tmp_path: Path) -> None:
    name = str(ROOT / command) if command in SCRIPTS else command
    code, text, said, [loaded] = run(RUN, name, "--help", cwd=tmp_path)
    assert (code, said) == (0, "")
    assert text.startswith("usage: ")
    assert "--help" in text
    assert not loaded & HEAVY


@pytest.mark.parametrize("command", ["evaluate", "bench_kv_cache"])
def test_help_for_an_encoder_decoder_loads_nothing_heavy(command: str, tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()
    for name in ("vocabulary.json", "manifest.json"):
        (tmp_path / "step-00000001" / name).write_text("{}")
    given = {
        "evaluate": ["--checkpoint", "step-00000001"],
        "bench_kv_cache": ["--config", str(ROOT / "configs/seq2seq/copy.yaml")],
    }
    code, text, _, [loaded] = run(RUN, str(ROOT / f"launch/{command}.py"), *given[command], "--help", cwd=tmp_path)
    assert code == 0
    assert {"evaluate": "--source SOURCE", "bench_kv_cache": "Sources to decode at once"}[command] in text
    assert not loaded & HEAVY


@pytest.mark.parametrize("script", ["train_gpt", "train_seq2seq"])
def test_a_configuration_is_printed_without_torch(script: str, tmp_path: Path) -> None:
    arguments = ["--model.d_model", "96", "--print_config"]
    code, text, _, [loaded] = run(RUN, str(ROOT / f"launch/{script}.py"), *arguments, cwd=tmp_path)
    assert code == 0
    assert "d_model: 96" in text
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch/train_gpt.py", "--model.layers", "3"], "unknown option model.layers: did you mean"),
        (["launch/train_seq2seq.py", "--seed", "one"], "seed: expected int, got one"),
        (["launch/train_gpt.py", "--training.batch_size", "0"], "training.batch_size must be "),
        (["launch/train_gpt.py", "--config", "none.yaml"], "none.yaml"),
        (["launch/evaluate.py", "--checkpoint", "x", "--beams", "2", "--seed", "3"], "--seed is for texts"),
        (["launch/bench_kv_cache.py", "--checkpoint", "x", "--json", "x.txt"], "cannot write x.txt"),
        (
            ["launch/bench_training.py", "--config", str(ROOT / "configs/gpt/quick.yaml"), "--turns", "0"],
            "turns must be",
        ),
        (["demo/app.py", "--port", "0"], "port must be at least 1"),
        (["launch/doctor.py", "--num_processes", "0"], "num_processes must be at least 1, got 0"),
        (["launch/doctor.py", "--timeout", "-1"], "timeout must be above 0, got -1.0"),
        (["launch/doctor.py", "--launch_file", "none.yaml"], "there is no file none.yaml"),
        (["launch/doctor.py", "--json", "report.txt"], "cannot write report.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_named_without_torch(arguments: list[str], message: str, tmp_path: Path) -> None:
    code, text, said, [loaded] = run(RUN, str(ROOT / arguments[0]), *arguments[1:], cwd=tmp_path)
    assert (code, text) == (2, "")
    assert said.startswith("error: ")
    assert message in said
    assert not loaded & HEAVY


def test_the_model_loads_torch_alone_and_a_training_says_its_device_before_it_loads_more(tmp_path: Path) -> None:
    late = (HEAVY - {"torch", "accelerate"}) | {"torch._dynamo", "torch.utils.tensorboard"}
    code, text, said, [with_model, at_first_line] = run(TRAIN, str(ROOT / "launch/train_gpt.py"), cwd=tmp_path)
    assert (code, said) == (0, "")
    assert text.startswith("device      ")
    assert with_model & (late | {"torch", "accelerate"}) == {"torch"}
    assert "accelerate" in at_first_line
    assert not at_first_line & late


@pytest.mark.parametrize(("package", "model"), [("gpt", "GPT"), ("seq2seq", "EncoderDecoder")])
def test_a_package_loads_torch_when_its_model_is_asked_for(package: str, model: str, tmp_path: Path) -> None:
    tell = 'print("loaded", *sys.modules, file=sys.stderr)'
    code = f"""
import sys
import {package}
from {package} import ModelConfig
{tell}
from {package} import {model}, load
from {package}.task import load_{package}
assert load is load_{package}
assert {model}.__module__ == "{package}.model"
assert all(getattr({package}, name).__name__ for name in {package}.__all__)
assert not hasattr({package}, "no_such_name")
{tell}
"""
    code, _, said, [before, after] = run(code, cwd=tmp_path)
    assert (code, said) == (0, "")
    assert not before & HEAVY
    assert "torch" in after
