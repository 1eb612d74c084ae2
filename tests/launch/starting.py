"""How long commands take to answer: `python tests/launch/starting.py [--before CHECKOUT] [--json FILE]`.

Medians in seconds, everything in turns, in processes of their own. A training counts to its first line.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from training.runtime.machine import describe_machine  # Before torch: it says how threads wait.

# isort: split
import torch

ROOT = Path(__file__).parents[2]
TORCH = "import torch"
OTHERS = ("bench_tokenisation", "bench_training", "compare_compression", "doctor", "export", "length_generalisation")
OTHERS += ("plan", "plot_runs", "runs", "sweep")
ROWS: dict[str, list[str]] = {
    TORCH: ["-c", TORCH],
    "import gpt.model": ["-c", "import gpt.model"],
    "train_gpt.py --help": ["launch/train_gpt.py", "--help"],
    "demo/app.py --help": ["demo/app.py", "--help"],
    "train_gpt.py --print_config": ["launch/train_gpt.py", "--print_config"],
    "train_gpt.py, first line": ["launch/train_gpt.py"],
    "train_seq2seq.py --help": ["launch/train_seq2seq.py", "--help"],
    "evaluate.py --help": ["launch/evaluate.py", "--help"],
    "bench_kv_cache.py --help": ["launch/bench_kv_cache.py", "--help"],
    "bench_kv_cache.py --config copy.yaml --help": [
        *("launch/bench_kv_cache.py", "--config", str(ROOT / "configs/seq2seq/copy.yaml"), "--help")
    ],
    **{f"{name}.py --help": [f"launch/{name}.py", "--help"] for name in OTHERS},
    "-m data.text --help": ["-m", "data.text", "--help"],
    "-m data.dates --help": ["-m", "data.dates", "--help"],
    "train_seq2seq.py --print_config": ["launch/train_seq2seq.py", "--print_config"],
    "train_seq2seq.py, first line": ["launch/train_seq2seq.py"],
}
BOTH = list(ROWS)[1:6]
"""What is measured of an earlier state, too: the others are like one of these."""


def seconds(checkout: Path, words: list[str], *, first_line: bool) -> float:
    """From the start of a command to its end, or to its first line."""
    if words[0].endswith(".py"):
        words = [str(checkout / words[0]), *words[1:]]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        begin = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, *words], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            said = process.stdout.readline() if first_line else process.stdout.read()
            if not first_line:
                process.wait()
            passed = time.perf_counter() - begin
            process.kill()
        assert said or words[0] == "-c", f"{words} said nothing"
    return passed


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, help="A checkout of an earlier state, to compare with.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    taken: dict[str, dict[str, list[float]]] = {name: {} for name in ROWS}
    with suppress(KeyboardInterrupt):  # Ctrl-C: what was measured until then.
        for _, (name, words) in product(range(options.repeats), ROWS.items()):
            checkouts = {"now": ROOT} | ({"before": options.before} if options.before and name in BOTH else {})
            for state, checkout in checkouts.items():
                passed = seconds(checkout, words, first_line=name.endswith("first line"))
                taken[name].setdefault(state, []).append(round(passed, 3))
    unit = statistics.median(taken[TORCH]["now"])
    for name, states in taken.items():
        medians = {state: statistics.median(values) for state, values in states.items()}
        print(f"{name:45}" + "".join(f"  {state} {t:6.2f} s ({t / unit:.2f})" for state, t in medians.items()))
    if options.json:
        figures: dict[str, Any] = describe_machine(torch.device("cpu")) | {"seconds": taken}
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
