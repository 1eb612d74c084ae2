"""The benchmarks time what they say they time."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from decoding import benchmark as speed
from decoding import cache_benchmark as benchmark
from decoding.benchmark import (
    Contender,
    Machine,
    agreement,
    contenders,
    decode_rows,
    mean_length,
    measure_decoding,
    step_bytes,
    token_flops,
)
from decoding.cache_benchmark import PROMPT_TOKENS, WARM_UP_TOKENS, Arms, Reader, describe, measure_arms, plot
from decoding.decoder import Decoder, Precision, convert
from decoding.generation import generate
from decoding.machine import fill_zero_weights
from gpt.config import ModelConfig
from gpt.model import GPT
from layers import KVCache
from training.seeds import generator

WITHOUT, WITH = "without cache, eager", "with cache, eager"


@pytest.fixture
def model() -> GPT:
    model = GPT(ModelConfig(num_layers=2, d_model=16, num_heads=2, d_ff=24, max_len=64), 7).eval()
    model.init_weights(generator(0))
    fill_zero_weights(model)
    return model


def test_a_compiled_forward_pass_is_used_without_a_look_at_its_length(model: GPT) -> None:
    reader = Reader(Decoder(model, "eager"), use_cache=False, forward=torch.compile(model, backend="eager"))
    assert torch.allclose(reader.read([1, 2, 3]), Reader(Decoder(model, "eager"), use_cache=False).read([1, 2, 3]))


def test_no_weight_stays_at_zero_and_the_same_model_comes_again(model: GPT) -> None:
    assert all(parameter.any() for parameter in model.parameters())
    again = GPT(model.config, 7)
    again.init_weights(generator(0))
    fill_zero_weights(again)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_with_and_without_the_cache_the_logits_are_the_same_past_the_context(model: GPT) -> None:
    cached, uncached = (Reader(Decoder(model, "eager"), use_cache=use_cache) for use_cache in (True, False))
    unread = [1, 2, 3]
    for _ in range(150):
        logits = cached.read(unread)
        torch.testing.assert_close(logits, uncached.read(unread))
        unread = [int(logits.argmax())]


def test_arms_read_the_same_tokens_in_alternating_order(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[bool, list[int]]] = []

    class Watched(Reader):
        def __init__(self, decoder: Decoder, *, use_cache: bool, forward: object) -> None:
            super().__init__(decoder, use_cache=use_cache)
            self.seen: list[int] = []
            read.append((use_cache, self.seen))

        def read(self, tokens: Sequence[int]) -> torch.Tensor:
            self.seen.extend(tokens)
            return super().read(tokens)

    monkeypatch.setattr(benchmark, "Reader", Watched)
    advanced: list[None] = []
    arms = measure_arms(model, [], repeats=3, new_tokens=20, advance=lambda: advanced.append(None))
    warm_up, timed = read[1:-6], read[-6:]
    assert [(use_cache, len(seen)) for use_cache, seen in warm_up] == [
        (False, PROMPT_TOKENS),
        (True, PROMPT_TOKENS + WARM_UP_TOKENS),
    ]
    assert [use_cache for use_cache, _ in timed] == [False, True, True, False, False, True]
    assert all(seen == timed[0][1] for _, seen in timed)
    assert len(timed[0][1]) == PROMPT_TOKENS + 19
    assert len(advanced) == 6 * 20
    for name in (WITHOUT, WITH):
        assert [len(seconds) for seconds in arms.seconds[name]] == [20] * 3
        assert all(earlier < later for seconds in arms.seconds[name] for earlier, later in pairwise(seconds))


def test_a_row_is_the_median_of_the_repeats() -> None:
    arms = Arms(
        seconds={
            WITHOUT: [[1.0, 4.0], [3.0, 9.0], [2.0, 6.0]],
            WITH: [[0.5, 1.0], [0.1, 3.0], [9.0, 2.0]],
            "with cache, native": [[0.1, 0.2], [0.1, 0.2], [0.1, 0.3]],
        }
    )
    assert [(row.no_cache_seconds, row.cache_seconds, row.speedup) for row in arms.rows([1, 2])] == [
        (2.0, 0.5, 4.0),
        (6.0, 2.0, 3.0),
    ]
    assert arms.rows([2])[0].arms == {WITHOUT: 6.0, WITH: 2.0, "with cache, native": 0.2}


def test_the_description_and_the_picture_hold_what_was_measured(model: GPT, tmp_path: Path) -> None:
    figures = describe(model, source="a test", repeats=2)
    assert figures["device"].startswith("cpu: ")
    assert (figures["torch"], figures["model"]["d_model"]) == (torch.__version__, 16)
    arm = [[0.01 * n for n in range(1, 501)]] * 2
    plot(Arms(seconds={WITHOUT: arm, WITH: arm}), tmp_path / "x.svg", "the title")
    drawn = (tmp_path / "x.svg").read_text()
    for text in ("the title", WITHOUT, WITH, "new tokens", "seconds", "milliseconds"):
        assert f"<!-- {text} -->" in drawn


def test_contenders_take_turns_and_their_figures_follow_from_their_seconds() -> None:
    wrote: list[tuple[str, int, int]] = []

    def contender(name: str, slowness: float) -> Contender:
        def write(prompts: Sequence[Sequence[int]], new_tokens: int) -> list[float]:
            wrote.append((name, len(prompts), new_tokens))
            return [slowness * (n + 2) for n in range(new_tokens)]

        sizes = {"step_bytes": lambda streams, length: 1e9 * streams + length, "cache_bytes": lambda s, n: s * n}
        return Contender(mode=name, write=write, batches=[1, 4], token_flops=3e9, **sizes)

    both = [contender("fp32 a", 0.5), contender("fp32 b", 0.25)]
    machine = measure_decoding(both, 7, 64, repeats=2, new_tokens=21)
    assert min(machine) > 0
    first = [name for name, streams, new_tokens in wrote if new_tokens == 1][2:]
    assert first[:4] == ["fp32 a", "fp32 b", "fp32 b", "fp32 a"]
    assert len(first) == 2 * speed.FIRST_TOKENS
    passes = [(name, streams) for name, streams, new_tokens in wrote if new_tokens == 21]
    a, b = [("fp32 a", 1), ("fp32 a", 4)], [("fp32 b", 1), ("fp32 b", 4)]
    assert passes == [*a, *b, *b, *a]
    rows = decode_rows(both, 21, 64, Machine(4.0, 12.0))
    assert [(row["mode"], row["batch"], row["tokens_per_second"]) for row in rows] == [
        ("fp32 a", 1, 2.0),
        ("fp32 a", 4, 8.0),
        ("fp32 b", 1, 4.0),
        ("fp32 b", 4, 16.0),
    ]
    assert [row["first_token_seconds"] for row in rows] == [1.0, 1.0, 0.5, 0.5]
    assert [row["milliseconds_per_step"] for row in rows] == [500, 500, 250, 250]
    assert rows[1]["bandwidth_share"] == pytest.approx(2 * (4e9 + PROMPT_TOKENS + 10.5) / 4e9)
    assert rows[1]["arithmetic_share"] == 8.0 * 3e9 / 12e9
    assert rows[1]["cache_bytes"] == 4 * (PROMPT_TOKENS + 20)
    assert [row["compile_seconds"] for row in rows] == [0.0] * 4, "never negative"


def test_the_mean_length_is_that_of_the_cache(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[KVCache] = []
    take = Decoder.take_cache

    def taken(decoder: Decoder, *sizes: int) -> KVCache:
        caches.append(take(decoder, *sizes))
        return caches[-1]

    monkeypatch.setattr(Decoder, "take_cache", taken)
    steps = generate(Decoder(model, "eager"), [[1] * PROMPT_TOKENS], max_new_tokens=150, when_full="slide")
    lengths = [caches[0].lengths[0] for _ in steps]
    assert max(lengths) == 64
    assert mean_length(150, 64) == pytest.approx(sum(lengths[1:]) / 149)
    assert mean_length(500, 512) == PROMPT_TOKENS + 250


def test_a_step_reads_all_matrices_and_the_filled_cache(model: GPT) -> None:
    matrices = 2 * (4 * 16 * 16 + 3 * 16 * 24) + 16 * 7
    slot = 2 * 2 * 16
    assert token_flops(model) == token_flops(convert(deepcopy(model), "int8")) == 2 * matrices
    assert step_bytes(model)(3, 10) == 4 * (matrices + 3 * 10 * slot)
    scales = 4 * (2 * (4 * 16 + 2 * 24 + 16) + 7)
    assert step_bytes(convert(model, "int8"))(3, 10) == matrices + scales + 2 * 3 * 10 * slot


def test_all_our_ways_write_and_int8_is_left_to_those_that_read_it_as_it_is(model: GPT) -> None:
    ours = contenders(model, ["fp32", "bf16", "int8"], ["eager", "auto"], [2])
    assert [way.mode for way in ours] == ["fp32 eager", "fp32 auto", "bf16 eager", "bf16 auto", "int8 auto"]
    for way in ours:
        seconds = way.write([[1, 2], [3, 4]], 70)
        assert len(seconds) == 70, "past the context"
        assert all(earlier < later for earlier, later in pairwise(seconds))


def test_agreement_is_one_with_itself_and_less_with_another_model(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    assert agreement(model, "fp32", 40) == 1.0

    def spoiled(model: GPT, precision: Precision) -> GPT:
        assert model.head is not None
        model.head.weight.data.neg_()
        return model

    monkeypatch.setattr(speed, "convert", spoiled)
    assert agreement(model, "bf16", 40) < 0.5
