"""How fast training and sampling are beside other programs that keep cores busy.

`PYTHONPATH=.:tests python tests/reliability/busy.py --json docs/results/busy_cpu.json`, on a machine that does nothing
else. Processes of their own measure it, once with OpenMP's own waiting and once with ours, idle and beside one and two
loops of Python; all in turn.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from helpers import ROOT, command, read_metrics

from decoding.machine import fill_zero_weights
from gpt.config import GPTConfig
from training.config.command_line import StrictParser, parse_config_text
from training.runtime.machine import describe_machine
from training.runtime.threads import WAITS, set_cpu_threads
from training.seeds import generator

SECONDS = 2.0
MAX_SECONDS = 12.0
STEPS = 40
OWN_SPIN = "300000"
"""What GNU's OpenMP takes where nothing is set, in turns."""

SAMPLING = [
    (config, precision, mode, streams)
    for config, precision, mode in (
        ("quick", "fp32", "native"),
        ("quick", "fp32", "eager"),
        ("seed", "int8", "native"),
        ("seed", "fp32", "native"),
        ("seed", "fp32", "eager"),
    )
    for streams in (1, 16)
]


@contextmanager
def busy(programs: int) -> Iterator[None]:
    """So many loops that never wait."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(programs)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def tokens_per_second(config: str, precision: str, mode: str, streams: int) -> float:
    """Of greedy text in `streams` streams, each token looked at."""
    from decoding.decoder import Decoder, convert
    from decoding.generation import generate
    from decoding.sampling import GREEDY
    from gpt.model import GPT

    set_cpu_threads()
    shape = parse_config_text(GPTConfig, (ROOT / f"configs/gpt/{config}.yaml").read_text()).model
    model = GPT(replace(shape, positions="rotary"), 65)
    model.init_weights(generator(1, "weights"))
    fill_zero_weights(model)
    decoder = Decoder(convert(model.eval(), precision), mode)  # type: ignore[arg-type]

    def write(tokens: int, until: float) -> int:
        prompts, seeds = [[1, 2, 3, 4, 5, 6, 7, 8]] * streams, [0] * streams
        written = 0
        for chosen in generate(decoder, prompts, max_new_tokens=tokens, sampling=GREEDY, seeds=seeds):
            written += len(chosen.tokens_B.tolist())
            if time.perf_counter() > until:
                break
        return written

    write(10, time.perf_counter() + MAX_SECONDS)
    start, written = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        written += write(100, start + MAX_SECONDS)
    return written / (time.perf_counter() - start)


def training_tokens_per_second() -> float:
    """Of `quick.yaml`, by the command."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--tracking", "none", "--training.max_steps", str(STEPS), "--training.eval_interval", "0"]
        options += ["--output_dir", f"{folder}/run"]
        done = command(ROOT / "launch/train_gpt.py", *options, cwd=Path(folder), timeout=900)
        assert done.returncode == 0, done.stderr
        last = read_metrics(Path(folder, "run"))[-1]
        return last["tokens"] / last["seconds"]


def sampling_rates() -> dict[str, float]:
    """The rates of all ways to sample, by a process of their own."""
    done = command(__file__, "--sampling", cwd=ROOT, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}", timeout=900)
    assert done.returncode == 0, done.stderr
    rates: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return rates


def main() -> None:
    """All figures."""
    parser = StrictParser(prog="busy.py", description=__doc__)
    parser.add_argument("--json", type=str, help="File for the figures.")
    parser.add_argument("--repeats", type=int, default=3, help="Turns; figures are medians.")
    parser.add_argument("--sampling", action="store_true", help="Only print the rates of sampling in this process.")
    options = parser.parse_args()
    if options.sampling:
        print(json.dumps({" ".join(map(str, way)): tokens_per_second(*way) for way in SAMPLING}))
        return
    rates: dict[str, dict[str, list[float]]] = {}
    for _ in range(options.repeats):
        for waiting, spin in (("short spin", WAITS["GOMP_SPINCOUNT"]), ("OpenMP's own", OWN_SPIN)):
            os.environ["GOMP_SPINCOUNT"] = spin
            for programs in range(3):
                with busy(programs):
                    taken = {"quick training": training_tokens_per_second()} | sampling_rates()
                for what, rate in taken.items():
                    rates.setdefault(what, {}).setdefault(f"{waiting}, {programs} busy", []).append(round(rate, 1))
                    print(f"{what:24} {waiting:13} {programs} busy  {rate:10,.1f} tokens/s", flush=True)
    import torch

    medians = {what: {where: statistics.median(taken) for where, taken in of.items()} for what, of in rates.items()}
    result = describe_machine(torch.device("cpu")) | {"tokens_per_second": medians, "all": rates}
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
