"""What is timed of a GPT is what it says."""

from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from decoding.decoder import Decoder, convert
from decoding.generation import context_used, generate
from decoding.machine import costs, with_random_weights
from decoding.sampling import Chosen, Sampler
from gpt.baselines import agreement, decoders_of, random_prompts, variants, write_without_cache
from gpt.config import ModelConfig
from gpt.model import GPT
from layers import KVCache


@pytest.fixture
def model() -> GPT:
    config = ModelConfig(num_layers=2, d_model=16, num_heads=2, d_ff=24, max_len=64)
    return with_random_weights(GPT(config, 7), 0, torch.device("cpu"))


def test_without_the_cache_the_text_is_the_same_past_the_context(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[list[int]] = []
    choose = Sampler.choose

    def noted(sampler: Sampler, logits_BV: Tensor) -> Chosen:
        found = choose(sampler, logits_BV)
        chosen.append(found.tokens_B.tolist())
        return found

    monkeypatch.setattr(Sampler, "choose", noted)
    for variant in variants([("fp32", Decoder(model, "eager"))], [2], ["eager"]):
        seconds = list(variant.write(random_prompts(7, 2), 150))
        assert len(seconds) == 150
        assert all(earlier < later for earlier, later in pairwise(seconds))
    assert chosen[:150] == chosen[150:]
    assert len(set(map(tuple, chosen))) > 3


def test_a_known_text_is_read_as_it_is_and_a_long_prompt_from_its_end(model: GPT) -> None:
    read: list[list[int]] = []

    def forward(tokens_BT: Tensor) -> Tensor:
        read.append(tokens_BT[0].tolist())
        return model(tokens_BT)

    prompt = list(range(7)) * 10
    list(write_without_cache(model, forward, [prompt], 3, [6, 5, 4]))
    last = prompt[-64:]
    assert read == [last, [*last, 6][-32:], [*last, 6, 5][-33:]], "the older half of a full context goes"


def test_each_precision_in_each_mode_and_the_first_without_the_cache(model: GPT) -> None:
    models = {precision: convert(deepcopy(model), precision) for precision in ("fp32", "int8")}
    found = variants(decoders_of(models, ["eager", "compiled"], uncached=True), [2, 3], ["eager", "compiled"])
    assert [(variant.name, variant.streams) for variant in found] == [
        ("fp32 eager, without cache", 2),
        *[("fp32 eager", 2), ("fp32 eager", 3)],
        ("fp32 compiled, without cache", 2),
        *[("fp32 compiled", 2), ("fp32 compiled", 3)],
        *[("int8 compiled", 2), ("int8 compiled", 3)],
    ], "int8 is left to what reads it as it is"
    eager_too = decoders_of({"int8": models["int8"]}, ["compiled"], uncached=True)
    assert [decoder.mode for _, decoder in eager_too] == ["eager", "compiled"]
    alone = variants(decoders_of(models, ["eager"], uncached=False), [1], ())
    assert [variant.name for variant in alone] == ["fp32 eager", "int8 eager"]


def test_the_cache_holds_what_is_said_of_it(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    caches: list[KVCache] = []
    take = Decoder.take_cache

    def taken(decoder: Decoder, *sizes: int) -> KVCache:
        caches.append(take(decoder, *sizes))
        return caches[-1]

    monkeypatch.setattr(Decoder, "take_cache", taken)
    steps = generate(Decoder(model, "eager"), [[1] * 8], max_new_tokens=150, when_full="slide")
    lengths = [caches[0].lengths[0] for _ in steps]
    assert max(lengths) == 64
    assert lengths == [context_used(8 + step, 64) for step in range(150)]


def test_a_step_reads_all_matrices_and_the_filled_cache(model: GPT) -> None:
    matrices = 2 * (4 * 16 * 16 + 3 * 16 * 24) + 16 * 7
    slot, length = 2 * 2 * 16, 8 + 10.5
    found = costs(model, 3, prompt=8, new_tokens=21)
    assert found.token_flops == 2 * matrices
    assert found.step_bytes == 4 * (matrices + 3 * length * slot)
    assert found.cache_bytes == model.new_cache(3, 28).bytes
    scales = 4 * (2 * (4 * 16 + 2 * 24 + 16) + 7)
    rounded = costs(convert(model, "int8"), 3, prompt=8, new_tokens=21)
    assert rounded.step_bytes == matrices + scales + 2 * 3 * length * slot
    assert rounded.token_flops == found.token_flops


def test_agreement_is_one_with_itself_and_less_with_another_model(model: GPT) -> None:
    spoiled = deepcopy(model)
    assert spoiled.head is not None
    spoiled.head.weight.data.neg_()
    found = agreement(model, {"bf16": model, "int8": spoiled}, 40)
    assert found["bf16"] == 1.0
    assert found["int8"] < 0.5


def test_no_weight_stays_at_zero_and_the_same_model_comes_again(model: GPT) -> None:
    assert all(parameter.any() for parameter in model.parameters())
    again = with_random_weights(GPT(model.config, 7), 0, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
