"""What is timed of an encoder-decoder is what it says."""

from itertools import pairwise

import pytest
import torch
from seq2seq_models import random_model

from data.config import PairConfig
from seq2seq import baselines
from seq2seq.baselines import _bart, variants
from training.config.command_line import Namespace


def test_variants_decode_with_and_without_caches_in_the_mode_of_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    real = baselines.decode_steps

    def spy(*arguments: object, **options: object) -> object:
        asked.append(options)
        return real(*arguments, **options | {"mode": "eager"})  # type: ignore[arg-type]

    monkeypatch.setattr(baselines, "decode_steps", spy)
    found = variants(random_model(), ["native"], [2, 1], uncached=True)
    assert [(variant.name, variant.streams) for variant in found] == [
        ("fp32 eager, without cache", 2),
        *[("fp32 eager", 2), ("fp32 eager", 1)],
        *[("fp32 native", 2), ("fp32 native", 1)],
    ]
    for variant in found:
        seconds = list(variant.write([[3, 4], [5, 6]][: variant.streams], 4))
        assert len(seconds) == 4
        assert all(earlier < later for earlier, later in pairwise(seconds))
    ways = [("eager", False), *[("eager", True)] * 2, *[("native", True)] * 2]
    assert asked == [{"max_new_tokens": 4, "mode": mode, "use_cache": use_cache} for mode, use_cache in ways]
    assert [variant.name for variant in variants(random_model(), ["native"], [1], uncached=False)] == ["fp32 native"]


def test_a_fresh_model_knows_as_many_tokens_as_its_tokenizer_has() -> None:
    found = {name: baselines.vocabulary_size(PairConfig(tokenizer=name)) for name in ("characters", "bytes", "bpe:400")}
    assert found == {"characters": 3 + 26, "bytes": 3 + 257, "bpe:400": 3 + 400}
    assert baselines.vocabulary_size(PairConfig(task="pairs", source="a.csv", tokenizer="words")) == 3 + 26


def test_bart_has_the_same_size_and_writes_exactly_as_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    model = random_model(d_model=64, d_ff=192, vocab_size=29)
    with_cache, without = _bart(model, Namespace(batch=[3], peer_uncached=True))
    assert with_cache.name == f"fp32 transformers {transformers.__version__}, BART"
    assert without.name == f"{with_cache.name}, without cache"
    ours = sum(parameter.numel() for parameter in model.parameters())
    assert with_cache.parameters == pytest.approx(ours, rel=0.1)
    lengths = []
    real = transformers.GenerationMixin.generate

    def spy(*arguments: object, **options: object) -> torch.Tensor:
        found: torch.Tensor = real(*arguments, **options)
        lengths.append(found.shape)
        return found

    monkeypatch.setattr(transformers.GenerationMixin, "generate", spy)
    for variant in (with_cache, without):
        seconds = list(variant.write([[3, 4, 5], [6], [7, 8]], 6))
        assert len(seconds) == 6
        assert all(earlier < later for earlier, later in pairwise(seconds))
    assert lengths == [(3, 7)] * 2, "the start, and six tokens"
