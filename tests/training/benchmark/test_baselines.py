"""Other trainers: how their lines are read, and how they end."""

import re
import time
from pathlib import Path

import pytest

from training.benchmark.baselines import PATTERN, Baseline
from training.runtime.errors import InputError

LINES = "; ".join(
    f"echo 'iter {n}: loss {4 - n / 10:.4f}, time {milliseconds}.00ms, mfu 12.00%'"
    for n, milliseconds in enumerate((9000, 800, 100, 200, 300))
)


def test_the_median_of_the_later_half_of_nano_gpts_lines_counts() -> None:
    baseline, said = Baseline.parse(f"nanoGPT=echo starting; {LINES}", PATTERN, None), []
    baseline.run(4000, said.append)
    assert baseline.turns == [1000 * 4000 / 200]
    assert said[0] == "nanoGPT: iter 0: loss 4.0000, time 9000.00ms, mfu 12.00%"
    assert len(said) == 5
    found = baseline.figures([30_000.0])
    assert (found["name"], found["ratio"], found["loss"]) == ("nanoGPT", 1.5, 3.6)


def test_a_baselines_own_tokens_and_a_pattern_of_ones_own() -> None:
    baseline = Baseline.parse(LINES, PATTERN, 100)
    baseline.run(4000, lambda line: None)
    assert baseline.turns == [500]
    assert baseline.name == baseline.command == LINES
    baseline = Baseline.parse("echo 'speed 1,250.5 a second'", r"speed (?P<tokens_per_second>[\d,.]+)", 100)
    baseline.run(4000, lambda line: None)
    assert baseline.turns == [1250.5]


@pytest.mark.parametrize(
    ("text", "pattern", "message"),
    [
        ("  ", PATTERN, "expected 'COMMAND' or 'NAME=COMMAND'"),
        ("echo", "(", "peer_pattern is not a regular expression"),
        ("echo", "iter", r"must have a group \(\?P<milliseconds>…\)"),
        (
            "x=echo a; echo; echo no memory; exit 3",
            PATTERN,
            "baseline x ended with code 3; its last line: no memory$",
        ),
        ("x=echo hello", PATTERN, "the baseline x wrote no line like iter .*; its last line: hello$"),
        ("x=true", PATTERN, "its last line: nothing$"),
    ],
)
def test_what_is_wrong_with_a_baseline_is_one_line(text: str, pattern: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Baseline.parse(text, pattern, None).run(1, lambda line: None)
    assert "\n" not in str(caught.value)


def test_nothing_of_a_baseline_outlives_it(tmp_path: Path) -> None:
    file = tmp_path / "alive"
    baseline = Baseline.parse(f"(while :; do date >>{file}; sleep 0.05; done) >/dev/null 2>&1 & {LINES}", PATTERN, 1)
    baseline.run(1, lambda line: None)
    time.sleep(0.1)
    before = file.read_bytes() if file.exists() else b""
    time.sleep(0.3)
    assert (file.read_bytes() if file.exists() else b"") == before
    assert re.search(PATTERN, "iter 10: loss 4.2, time 123.45ms, mfu 1%")
