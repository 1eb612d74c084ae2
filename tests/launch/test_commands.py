"""The commands as a person types them."""

import json
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from forking import python
from helpers import ROOT, command, read_metrics

from gpt.config import GPTConfig
from launch.train_gpt import main as train_gpt_command
from training.config.command_line import config_to_yaml
from training.runtime.errors import exit_code

TRAIN, EVALUATE = ROOT / "launch/train_gpt.py", ROOT / "launch/evaluate.py"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the default configuration was trained for 6 steps, as runs/gpt-quick-1."""
    folder = tmp_path_factory.mktemp("trained")
    done = command(TRAIN, "--training.max_steps", "6", "--training.log_interval", "2", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "printed.txt").write_text(done.stdout)
    return folder


def test_training_says_what_it_is_and_what_came_out(trained: Path) -> None:
    printed = (trained / "printed.txt").read_text()
    for pattern in (
        r"device      cpu, 1 process, \d+ threads each, (bf16|fp32) \(.*\)",
        r"model       870,016 parameters",
        r"data        Tiny Shakespeare, from the packaged plays, 1,003,776 tokens per epoch",
        r"steps       6 of 1,536 tokens, 9,216 in all, 0.00918 epochs",
        r"work        11.9 GFLOP a step, 71.4 GFLOP in all",
        r"memory      about [\d.]+ (MB|GB) of each device by formula: activations [\d.]+ MB, ",
        r"optimizer   muon at 0.03 for the matrices of the blocks \(optimizer.muon_learning_rate\), "
        r"adamw at 0.006 for the rest \(optimizer.learning_rate\)",
        r"folder      runs/gpt-quick-1",
        r"step 2/6  loss \d\.\d{4}  lr \S+  [\d,]+ tokens/s  \d\d:\d\d left",
        r"step 6/6  validation loss \d\.\d{4}  \(the best so far\)",
        r"validation loss  \d\.\d{4} nats per character, over the whole validation split\nbits per byte    \d\.\d{4}\n",
        r"best checkpoint  runs/gpt-quick-1/checkpoints/best \(step 6, \d\.\d{4}\)",
        r"python[0-9.]* \S*launch/evaluate.py --checkpoint runs/gpt-quick-1 --prompt",
        r"python[0-9.]* -m tensorboard.main --logdir runs",
        r"--output_dir runs/gpt-quick-1 --resume --training.max_steps 12 --schedule.restart_step 6\n +\(warms ",
    ):
        assert re.search(pattern, printed), pattern
    sample = printed.split("(step 6, ")[1].split("\n\n", 1)[1].split("\n\nWhat next:")[0]
    assert len(sample) == 300
    assert "\x1b" not in printed, "no bar and no colours where there is no terminal"


def test_the_run_holds_its_resolved_configuration(trained: Path) -> None:
    config = yaml.safe_load((trained / "runs/gpt-quick-1/config.yaml").read_text())
    assert config["training"]["max_steps"] == 6
    assert config["model"]["num_kv_heads"] is None
    assert [line["step"] for line in read_metrics(trained / "runs/gpt-quick-1")] == [2, 4, 6]


@pytest.mark.parametrize("checkpoint", ["runs/gpt-quick-1", "runs/gpt-quick-1/checkpoints/last"])
def test_evaluate_continues_a_prompt(trained: Path, checkpoint: str) -> None:
    arguments = [EVALUATE, "--checkpoint", checkpoint, "--prompt", "ROMEO:", "--max_new_tokens", "90", "--top_k", "5"]
    first = command(*arguments, cwd=trained)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("ROMEO:")
    assert len(first.stdout) == len("ROMEO:") + 90 + 1
    assert re.fullmatch(r"90 tokens, [\d,]+ tokens/s after the first, on cpu, fp32, (native|eager)\n", first.stderr)
    if checkpoint.endswith("last"):
        assert command(*arguments, "--seed", "0", cwd=trained).stdout == first.stdout
        assert command(*arguments, "--seed", "1", cwd=trained).stdout != first.stdout


def test_a_reader_that_goes_away_is_no_traceback(trained: Path) -> None:
    options = ["--checkpoint", "runs/gpt-quick-1", "--max_new_tokens", "1000000", "--when_full", "slide"]
    line = shlex.join([*python(), str(EVALUATE), *options]) + " 2>errors.txt | head -c 1; echo ${PIPESTATUS[0]}"
    done = subprocess.run(["bash", "-c", line], cwd=trained, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout[1:] == "141\n"
    assert (trained / "errors.txt").read_text() == ""


def test_help_gives_every_option_its_meaning_and_default() -> None:
    done = command(TRAIN, "--help", cwd=ROOT)
    assert done.returncode == 0
    options = re.split(r"\n  (?=--)", done.stdout.split("options:")[1])[1:]
    assert len(options) > 35
    for option in options:
        name = option.split()[0]
        text = " ".join(option.split("\n\n")[0].split())
        assert len(text.split()) > 5, f"{name} says nothing"
        if "." in name:
            assert "(type: " in text or "{" in option, name
            assert "default: " in text, name
    printed = " ".join(done.stdout.split())
    for default in ("learning rate of muon. (type: float, default: 0.03)", "int or null, default: 800)", "gpt-quick)"):
        assert default in printed, "those of the default configuration"
    other = command(TRAIN, "--config", "configs/gpt/shakespeare.yaml", "--help", "--seed", "7", cwd=ROOT).stdout
    assert "int or null, default: 5000)" in " ".join(other.split())
    assert "(type: int, default: 7)" in " ".join(other.split())


def test_print_config_prints_what_a_run_would_use(tmp_path: Path) -> None:
    printed = command(TRAIN, "--model.d_ff", "99", "--print_config", cwd=tmp_path)
    assert printed.returncode == 0
    config = yaml.safe_load(printed.stdout)
    assert (config["name"], config["model"]["d_ff"]) == ("gpt-quick", 99)
    (tmp_path / "again.yaml").write_text(printed.stdout)
    assert command(TRAIN, "--config", "again.yaml", "--print_config", cwd=tmp_path).stdout == printed.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([TRAIN, "--model.num_layer", "3"], "error: unknown option model.num_layer: did you mean model.num_layers?"),
        ([TRAIN, "--config", "no.yaml"], "error: no.yaml: there is no such file"),
        ([TRAIN, "--data.source", "no.txt"], "error: data.source no.txt does not exist: expected auto, comedies, hub"),
        ([TRAIN, "--training.precision", "fp16"], "error: fp16 (as configured) needs a GPU"),
        ([EVALUATE, "--checkpoint", "nothing"], "error: nothing does not exist"),
        ([EVALUATE, "--checkpoint", "nothing", "--source", "a"], "error: nothing does not exist"),
        ([EVALUATE, "--checkpoint", "x", "--temperature", "-1"], "error: temperature must be at least 0, got -1.0"),
        ([EVALUATE, "--checkpoint", "x", "--topk", "5"], "error: unknown option topk: did you mean top_k?"),
        (
            ["-m", "data.text", "--output", "x", "--source", "a" * 300],
            f"error: data.source {'a' * 300} does not exist: ",
        ),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], line: str) -> None:
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_evaluate_refuses_unknown_characters_and_damage(trained: Path) -> None:
    evaluate = [EVALUATE, "--checkpoint", "runs/gpt-quick-1"]
    done = command(*evaluate, "--prompt", "caf\u00e9", cwd=trained)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: unknown character '\u00e9' (U+00E9) at line 1, column 4 of the prompt" in done.stderr
    file = trained / "runs/gpt-quick-1/checkpoints/best/model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:5000] + b"\x00" + content[5001:])
    done = command(*evaluate, cwd=trained)
    file.write_bytes(content)
    assert done.returncode == 2
    assert re.fullmatch(
        r"error: checkpoint .*step-00000006 is damaged: model.safetensors does not match its SHA-256\n", done.stderr
    )


def test_a_run_that_stopped_early_says_how_to_go_on(text_file: Path, tmp_path: Path) -> None:
    # With learning rates near 0 nothing gets better after the first evaluation.
    rates = ["--optimizer.name", "adamw", "--optimizer.learning_rate", "1e-30"]
    stop = ["--training.patience", "1", "--training.eval_interval", "1", "--tracking", "none"]
    small = ["--model.num_layers", "1", "--training.max_steps", "9", "--training.batch_size", "4"]
    small += ["--data.source", str(text_file)]
    done = command(TRAIN, *rates, *stop, *small, "--output_dir", "run", cwd=tmp_path)
    assert "step 2/9  validation loss" in done.stdout, done.stderr
    assert "stopping early, after 1 evaluations without a better one" in done.stdout
    assert "see curves" not in done.stdout
    resume = re.search(r"train on:    \S+ (.*)\n", done.stdout)
    assert resume is not None
    assert resume[1].endswith("--resume --training.patience 2")
    assert "trained 3 steps" in command(*resume[1].split(), cwd=tmp_path).stdout


def test_a_run_goes_on_with_its_own_configuration_and_what_is_given(
    config: GPTConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(config_to_yaml(replace(config, name="gpt-quick")))

    def train(*options: str) -> str:
        monkeypatch.setattr("sys.argv", ["train_gpt.py", *options])
        assert exit_code(train_gpt_command) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    train("--config", "mine.yaml")
    said = train("--resume", "--output_dir", "runs/gpt-quick-1", "--training.max_steps", "24")
    assert "resuming    after step 12" in said
    assert "training.max_steps was 12, is now 24: the steps to come differ for it" in said
    assert "changed     the learning rate goes from 0 of its peak to 0.5 at once" in said
    assert said.count("changed     ") == 2, "all else is as it was"
    said = train("--resume")  # The newest runs/gpt-quick-N, which is asked for 24 steps by now.
    assert "runs/gpt-quick-1" in said
    assert "changed     " not in said
    said = train("--resume", "--config", "mine.yaml", "--output_dir", "runs/gpt-quick-1")
    assert "training.max_steps was 24, is now 12" in said, "a file that is given counts"
    Path("runs/gpt-quick-1/config.yaml").write_text("training: {max_step: 3}\n")
    monkeypatch.setattr("sys.argv", ["train_gpt.py", "--resume"])
    assert exit_code(train_gpt_command) == 2
    error = "error: runs/gpt-quick-1/config.yaml: unknown option training.max_step: did you mean training.max_steps?\n"
    assert capsys.readouterr().err == error


def test_a_second_run_does_not_touch_the_first(trained: Path, text_file: Path) -> None:
    before = (trained / "runs/gpt-quick-1/metrics.jsonl").read_text()
    short = [TRAIN, "--training.max_steps", "1", "--tracking", "none", "--data.source", text_file]
    done = command(*short, cwd=trained)
    assert "folder      runs/gpt-quick-2" in done.stdout
    done = command(*short, "--output_dir", "runs/gpt-quick-1", cwd=trained)
    assert done.returncode == 2
    assert "already holds a run: go on with it by adding --resume, or choose another --output_dir" in done.stderr
    assert (trained / "runs/gpt-quick-1/metrics.jsonl").read_text() == before


def test_the_text_of_a_source_can_be_written(tmp_path: Path) -> None:
    done = command("-m", "data.text", "--output", "input.txt", cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "input.txt").stat().st_size == 1_115_394
    assert done.stdout.splitlines() == [
        "source      Tiny Shakespeare, from the packaged plays",
        "bytes       1,115,394",
        "characters  1,115,394, 65 different ones",
        "sha256      86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ]
    done = command("-m", "data.text", "--output", "no/input.txt", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write no/input.txt: No such file or directory\n"


def test_a_loss_that_explodes_is_exit_code_4(text_file: Path, tmp_path: Path) -> None:
    options = ["--optimizer.learning_rate", "1e38", "--training.max_steps", "9", "--training.max_grad_norm", "0"]
    done = command(TRAIN, *options, "--data.source", text_file, "--output_dir", "run", cwd=tmp_path)
    assert done.returncode == 4
    assert re.fullmatch(
        r"error: at step \d the (loss|gradient norm) is \S+ \(.*\); the weights of step .*\n", done.stderr
    )
    state = json.loads((tmp_path / "run/checkpoints/last/state.json").read_text())
    assert 0 < state["counters"]["step"] < 9
