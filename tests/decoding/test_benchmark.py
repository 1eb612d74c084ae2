"""The benchmark times what it says it times."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from decoding import benchmark
from decoding.benchmark import FIRST_TOKENS, Benchmark, Prompts, Variant, cache_rows, random_tokens, timed
from decoding.machine import Costs, machine_speed
from decoding.report import plot, show
from decoding.sampling import Chosen
from training.runtime.errors import NonFiniteError
from training.runtime.machine import describe_machine

ABOUT = describe_machine(torch.device("cpu")) | {
    "model": {"source": "a test", "parameters": 1000, "max_len": 64},
    "precision": "fp32",
    "task": "after nothing",
}


def variant(mode: str, slowness: float, *, log: list[tuple[str, int, int]] | None = None, **options: object) -> Variant:
    """The n-th of its tokens comes `slowness` times n + 2 seconds after the beginning."""

    def write(prompts: Prompts, new_tokens: int) -> Iterator[float]:
        if log is not None:
            log.append((made.name, len(prompts), new_tokens))
        yield from (slowness * (n + 2) for n in range(new_tokens))

    made = Variant(**{"precision": "fp32", "mode": mode, "streams": 1, "write": write} | options)  # type: ignore[arg-type]
    return made


def of(variants: list[Variant], **options: object) -> Benchmark:
    given = {"baselines": [], "rows": [5, 21], "prompts": lambda streams: [[1]] * streams} | options
    return Benchmark(about=ABOUT, variants=variants, **given)  # type: ignore[arg-type]


def test_variants_take_turns_and_figures_follow_from_their_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "machine_speed", lambda device: (4e9, 12e9))
    log: list[tuple[str, int, int]] = []
    spent = Costs(step_bytes=10**9, token_flops=3e9, cache_bytes=77)
    both = [variant("a", 0.5, log=log, streams=n, costs=spent) for n in (1, 4)]
    bench = of(both, baselines=[variant("b", 0.25, log=log)], long_prompt=[1] * 9)
    bench.run(2)
    once = [("fp32 a", 1, 1), ("fp32 a", 1, 1), ("fp32 b", 1, 1)]
    first = [entry for entry in log if entry[2] == 1]
    assert first[:6] == [*once, *once[::-1]]
    assert len(first) == 3 * (1 + FIRST_TOKENS)
    a, b = [("fp32 a", 1, 21), ("fp32 a", 4, 21)], [("fp32 b", 1, 21)]
    assert [entry for entry in log if entry[2] == 21] == [*a, *b, *b, *a[::-1]]
    figures = bench.figures()
    rows = [*figures["decode"], *figures["baselines"]]
    # The first token, which reads the prompt, is timed by itself.
    assert [(row["mode"], row["batch"], row["tokens_per_second"]) for row in rows] == [
        ("fp32 a", 1, 2.0),
        ("fp32 a", 4, 8.0),
        ("fp32 b", 1, 4.0),
    ]
    assert [row["first_token_seconds"] for row in rows] == [1.0, 1.0, 0.5]
    assert figures["first_token_seconds"] == 1.0, "of ours"
    assert [row["milliseconds_per_step"] for row in rows] == [500, 500, 250]
    assert [row["seconds"] for row in rows] == [11.0, 11.0, 5.5]
    assert (figures["read_gigabytes_per_second"], figures["multiply_gigaflops"]) == (4.0, 12.0)
    assert (rows[1]["bytes_per_step"], rows[1]["cache_bytes"]) == (10**9, 77)
    assert rows[1]["bandwidth_share"] == 2 * 1e9 / 4e9
    assert rows[1]["arithmetic_share"] == 8.0 * 3e9 / 12e9
    assert "bandwidth_share" not in rows[2]
    assert [row["compile_seconds"] for row in rows] == [0.0] * 3
    assert (figures["repeats"], figures["new_tokens"], "rows" in figures) == (2, 21, False)
    assert min(machine_speed("cpu")) > 0


def test_without_a_long_prompt_the_reading_counts_and_the_first_text_shows_what_compiling_takes() -> None:
    calls: list[int] = []

    def write(prompts: Prompts, new_tokens: int) -> Iterator[float]:
        calls.append(new_tokens)
        yield from (0.5 * (n + 2) + 7 * (len(calls) == 1) for n in range(new_tokens))

    bench = of([Variant(precision="fp32", mode="a", streams=3, write=write)])
    bench.run(3)
    (row,) = bench.figures()["decode"]
    assert calls == [16, 16, 21, 21, 21]
    assert row["tokens_per_second"] == 3 * 21 / 11.0
    assert row["compile_seconds"] == 7.0
    assert "first_token_seconds" not in row


def test_rows_are_medians_and_speed_ups_compare_a_mode_with_itself() -> None:
    passes = {
        ("eager", False): [[1.0, 4.0], [3.0, 9.0], [2.0, 6.0]],
        ("eager", True): [[0.5, 1.0], [0.1, 3.0], [9.0, 2.0]],
        ("compiled", False): [[1.0, 1.0]],
        ("compiled", True): [[0.1, 0.2]],
        ("native", True): [[0.1, 0.2], [0.1, 0.2], [0.1, 0.3]],
    }
    variants = [variant(mode, 1.0, use_cache=cached, passes=seen) for (mode, cached), seen in passes.items()]
    one, two = cache_rows(variants, [1, 2])
    assert [row["new_tokens"] for row in (one, two)] == [1, 2]
    assert [(row["no_cache_seconds"], row["cache_seconds"], row["speedup"]) for row in (one, two)] == [
        (2.0, 0.5, 4.0),
        (6.0, 2.0, 3.0),
    ]
    assert two["speedups"] == {"fp32 eager": 3.0, "fp32 compiled": 5.0}, "none for a mode that always has the cache"
    assert two["arms"]["fp32 native"] == 0.2


def test_the_table_is_of_the_first_precision_and_number_of_streams_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = [
        variant("eager", 0.4, use_cache=False),
        *[variant("eager", 0.1, streams=streams) for streams in (1, 16)],
        variant("native", 0.01),
        variant("native", 0.01, precision="bf16"),
    ]
    bench = of(variants)
    bench.run(1)
    figures = bench.figures()
    assert set(figures["seconds"]) == {"fp32 eager, without cache", "fp32 eager", "fp32 native"}
    assert [len(seconds) for seconds in figures["seconds"]["fp32 eager"]] == [2]
    show(figures)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["21", "8.800", "s", "2.200", "s", "4.00x", "0.220", "s"] in lines
    assert "parameters" not in [word for line in lines if line[:1] == ["mode"] for word in line]
    assert ["bf16", "native", "1", "95.5", "(95.5", "to", "95.5)", "0.0", "s", "0.220", "s"] in lines
    plot(bench, tmp_path / "x.svg")
    drawn = (tmp_path / "x.svg").read_text()
    for text in ("fp32 eager, without cache", "fp32 eager", "fp32 native", "new tokens", "seconds", "milliseconds"):
        assert f"<!-- {text} -->" in drawn
    assert f"<!-- a test on {ABOUT['device']}, fp32 -->" in drawn


def steps(log_probability: float = -1.0) -> Iterator[Chosen]:
    for _ in range(3):
        time.sleep(0.01)
        yield Chosen(torch.tensor([1]), torch.tensor([log_probability]), torch.empty(1, 0), torch.empty(1, 0))


def test_only_what_the_steps_take_counts() -> None:
    seconds = []
    for passed in timed(steps()):
        time.sleep(0.3)
        seconds.append(passed)
    assert len(seconds) == 3
    assert 0.03 <= seconds[-1] < 0.3
    with pytest.raises(NonFiniteError):
        list(timed(steps(float("nan"))))


def test_tokens_can_be_drawn_again() -> None:
    drawn = random_tokens(9, 50, "source", 1, lowest=3)
    assert drawn == random_tokens(9, 50, "source", 1, lowest=3)
    assert set(drawn) == {3, 4, 5, 6, 7, 8}
    assert drawn != random_tokens(9, 50, "source", 2, lowest=3)
