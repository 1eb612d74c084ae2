"""The benchmark compares what it says it compares."""

from collections.abc import Sequence

import pytest
import torch
from seq2seq_models import random_model

from decoding.native import NativeError
from seq2seq import benchmark
from seq2seq.benchmark import Arm, bart_arm, measure, our_arms, random_sources, rows_of
from seq2seq.model import EncoderDecoder


def test_every_arm_reads_the_same_sources_and_writes_as_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, Sequence[Sequence[int]], int]] = []

    def arm(name: str) -> Arm:
        return Arm(mode=name, decode=lambda sources, new: seen.append((name, sources, new)), parameters=1)

    arms = [arm("a"), arm("b")]
    sources = random_sources(9, 3, 4)
    said: list[str] = []
    measure(arms, sources, 5, 2, said.append)
    assert seen == [(name, sources, 5) for name in "ababba"], "a pass to warm up, then in turn"
    assert [len(arm.seconds) for arm in arms] == [2, 2]
    assert len(said) == 4
    assert random_sources(9, 3, 4) == sources


@pytest.mark.parametrize("native", [True, False])
def test_our_arms_decode_with_and_without_caches(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    asked: list[dict[str, object]] = []
    real = benchmark.decode_steps

    def spy(*arguments: object, **options: object) -> object:
        asked.append(options)
        return real(*arguments, **options | {"mode": "eager"})  # type: ignore[arg-type]

    def native_step(model: EncoderDecoder) -> None:
        if not native:
            raise NativeError("there is none")

    monkeypatch.setattr(benchmark, "decode_steps", spy)
    monkeypatch.setattr(benchmark, "native_step", native_step)
    for arm in our_arms(random_model()):
        arm.decode([[3, 4], [5, 6]], 4)
    ways: list[dict[str, object]] = [{"use_cache": False}, {"mode": "eager"}, {"mode": "native"}]
    assert asked == [way | {"max_new_tokens": 4} for way in ways[: 3 if native else 2]]


def test_bart_has_the_same_size_and_writes_exactly_as_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    model = random_model(d_model=64, d_ff=192, vocab_size=29)
    arm = bart_arm(model)
    ours = sum(parameter.numel() for parameter in model.parameters())
    assert arm.parameters == pytest.approx(ours, rel=0.1)
    lengths = []
    real = transformers.GenerationMixin.generate

    def spy(*arguments: object, **options: object) -> torch.Tensor:
        found: torch.Tensor = real(*arguments, **options)
        lengths.append(found.shape)
        return found

    monkeypatch.setattr(transformers.GenerationMixin, "generate", spy)
    arm.decode(random_sources(29, 3, 5), 6)
    assert lengths == [(3, 7)], "the start, and six tokens"


def test_rows_hold_medians_and_spread() -> None:
    arm = Arm(mode="x", decode=lambda sources, new: None, parameters=7, seconds=[3.0, 1.0, 2.0])
    (row,) = rows_of([arm], batch=10, new_tokens=4)
    assert (row["seconds"], row["fastest"], row["slowest"], row["tokens_per_second"]) == (2.0, 1.0, 3.0, 20.0)
