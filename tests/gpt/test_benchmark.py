"""The benchmark times what it says it times."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from gpt import benchmark
from gpt.benchmark import PROMPT_TOKENS, Measurement, fill_zero_weights, measure, plot, report
from gpt.config import ModelConfig
from gpt.generation import Reader
from gpt.model import GPT
from training.seeds import generator


@pytest.fixture
def model() -> GPT:
    model = GPT(ModelConfig(num_layers=2, d_model=16, num_heads=2, d_ff=24, max_len=64), 7).eval()
    model.init_weights(generator(0))
    fill_zero_weights(model)
    return model


def test_no_weight_stays_at_zero_and_the_same_model_comes_again(model: GPT) -> None:
    assert all(parameter.any() for parameter in model.parameters())
    again = GPT(model.config, 7)
    again.init_weights(generator(0))
    fill_zero_weights(again)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_both_arms_read_the_same_tokens_in_alternating_order(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[bool, list[int]]] = []

    class Watched(Reader):
        def __init__(self, model: GPT, *, use_cache: bool = True) -> None:
            super().__init__(model, use_cache=use_cache)
            self.seen: list[int] = []
            read.append((use_cache, self.seen))

        def read(self, tokens: list[int]) -> torch.Tensor:
            self.seen.extend(tokens)
            return super().read(tokens)

    monkeypatch.setattr(benchmark, "Reader", Watched)
    advanced: list[None] = []
    measurement = measure(model, repeats=3, new_tokens=20, advance=lambda: advanced.append(None))
    assert sorted(len(seen) for use_cache, seen in read[1:-6]) == [PROMPT_TOKENS], "warm-up"
    timed = read[-6:]
    assert [use_cache for use_cache, _ in timed] == [False, True, True, False, False, True]
    assert all(seen == timed[0][1] for _, seen in timed)
    assert len(timed[0][1]) == PROMPT_TOKENS + 19
    assert len(advanced) == 6 * 20
    for arm in (measurement.no_cache, measurement.cache):
        assert [len(seconds) for seconds in arm] == [20] * 3
        assert all(earlier < later for seconds in arm for earlier, later in pairwise(seconds))


def test_a_row_is_the_median_of_the_repeats() -> None:
    measurement = Measurement(no_cache=[[1.0, 4.0], [3.0, 9.0], [2.0, 6.0]], cache=[[0.5, 1.0], [0.1, 3.0], [9.0, 2.0]])
    rows = measurement.rows([1, 2])
    assert [(row.no_cache_seconds, row.cache_seconds, row.speedup) for row in rows] == [
        (2.0, 0.5, 4.0),
        (6.0, 2.0, 3.0),
    ]


def test_the_report_and_the_picture_hold_what_was_measured(model: GPT, tmp_path: Path) -> None:
    arm = [[0.01 * n for n in range(1, 501)]] * 2
    figures = report(Measurement(no_cache=arm, cache=arm), model, source="a test", precision="fp32")
    assert [row["new_tokens"] for row in figures["rows"]] == [100, 200, 300, 500]
    assert figures["rows"][3] == {
        "new_tokens": 500,
        "no_cache_seconds": pytest.approx(5.0),
        "cache_seconds": pytest.approx(5.0),
        "speedup": 1.0,
    }
    assert figures["seconds"]["cache"] == [[1.0, 2.0, 3.0, 5.0]] * 2
    assert figures["device"].startswith("cpu: ")
    assert (figures["torch"], figures["model"]["d_model"]) == (torch.__version__, 16)
    plot(Measurement(no_cache=arm, cache=arm), tmp_path / "x.svg", "the title")
    drawn = (tmp_path / "x.svg").read_text()
    for text in ("the title", "without cache", "with cache", "new tokens", "seconds", "milliseconds"):
        assert f"<!-- {text} -->" in drawn


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_model_can_be_timed_in_either_precision(model: GPT, dtype: torch.dtype) -> None:
    assert len(measure(model.to(dtype), repeats=1, new_tokens=70).cache[0]) == 70
