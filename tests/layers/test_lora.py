"""Low-rank adapters against their equation, and against peft's."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from gpt_models import WIDE, random_model, random_tokens
from torch import Tensor, nn

from decoding.decoder import Decoder
from gpt.model import GPT
from layers.lora import LoRALinear, add_lora, merge_lora
from layers.products import linears
from training.config.sections import OptimizerConfig
from training.optimizer import build_optimizer

ATTENTION, FEED_FORWARD = ("query", "key", "value", "out"), ("gate", "up", "down")


def adapted(**options: Any) -> GPT:
    """A model with an adapter that changes what it says."""
    model, generator = random_model(WIDE), torch.Generator().manual_seed(4)
    add_lora(model, **{"rank": 3, "alpha": 5.0, "generator": generator} | options)
    for module in model.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.lora_b, 0.0, 0.1, generator=generator)
    return model


def loss_of(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    logits_BTV = model(tokens_BT[:, :-1])
    return nn.functional.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten())


def test_a_layer_follows_its_equation_and_begins_as_what_it_was() -> None:
    linear, x = nn.Linear(6, 5).double(), torch.randn(2, 3, 6, dtype=torch.float64)
    layer = LoRALinear(linear, 2, 3.0, 0.0)
    assert torch.equal(layer(x), linear(x))
    assert layer.lora_a.abs().max() <= 6**-0.5
    assert layer.lora_a.std() > 0
    nn.init.normal_(layer.lora_b)
    expected = x @ linear.weight.T + linear.bias + 3.0 / 2 * (x @ layer.lora_a.T @ layer.lora_b.T)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)
    merged = layer.merged()
    assert type(merged) is nn.Linear
    torch.testing.assert_close(merged(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("targets", "wanted"), [("all", ATTENTION + FEED_FORWARD), ("query,value", ("query", "value")), ("up", ("up",))]
)
def test_the_adapter_alone_is_trained(targets: str, wanted: tuple[str, ...]) -> None:
    model = adapted(targets=targets)
    loss_of(model, random_tokens(model)).backward()
    graded = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    parts = [("attention" if part in ATTENTION else "feed_forward", part) for part in wanted]
    names = {f"blocks.{i}.{place}.{part}.lora_{x}" for i in range(2) for place, part in parts for x in "ab"}
    assert graded == names == model.adapter
    plain = GPT(WIDE, model.vocab_size).state_dict()
    assert model.state_dict().keys() - plain.keys() == names, "all else keeps its name"
    assert not plain.keys() - model.state_dict().keys()


def test_layers_with_an_adapter_are_not_laid_side_by_side() -> None:
    attention = adapted(targets="query").blocks[0].attention
    x_BTM = torch.randn(2, 64, 128)
    query, key = linears(x_BTM, attention.query, attention.key)
    torch.testing.assert_close(query, attention.query(x_BTM))
    torch.testing.assert_close(key, attention.key(x_BTM))


def test_a_merged_model_is_a_plain_one_that_says_the_same() -> None:
    model = adapted()
    tokens_BT = random_tokens(model)
    with torch.no_grad():
        expected_BTV = model(tokens_BT)
        assert (random_model(WIDE)(tokens_BT) - expected_BTV).abs().max() > 0.01, "the adapter does something"
        merge_lora(model)
        torch.testing.assert_close(model(tokens_BT), expected_BTV, rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not hasattr(model, "adapter")
    assert {type(module) for module in model.modules()} == {type(module) for module in random_model(WIDE).modules()}
    assert Decoder(model).mode == "native"
    before = [parameter.clone() for parameter in model.requires_grad_(False).parameters()]
    merge_lora(model)
    assert all(map(torch.equal, model.parameters(), before))
    assert not next(model.parameters()).requires_grad, "a model without adapters stays as it is"


def test_layers_with_a_bias_keep_it() -> None:
    shape = replace(WIDE, norm="layer", activation="gelu", attention_bias=True, feed_forward_bias=True)
    model = random_model(shape)
    tokens_BT = random_tokens(model)
    with torch.no_grad():
        before_BTV = model(tokens_BT)
        add_lora(model, rank=2, alpha=1.0)
        assert len(model.adapter) == 2 * 6 * 2
        torch.testing.assert_close(model(tokens_BT), before_BTV, rtol=1e-4, atol=1e-5)
        merge_lora(model)
        torch.testing.assert_close(model(tokens_BT), before_BTV, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == random_model(shape).state_dict().keys()


def test_what_is_dropped_of_a_sample_depends_on_its_own_seed() -> None:
    model = adapted(dropout=0.5).train()
    tokens_BT, seeds_B = random_tokens(model, 4), torch.arange(4) * 7919

    def read(rows: slice) -> Tensor:
        model.set_sample_seeds(seeds_B[rows])
        logits_BTV: Tensor = model(tokens_BT[rows])
        return logits_BTV

    whole_BTV = read(slice(0, 4))
    torch.testing.assert_close(read(slice(2, 4)), whole_BTV[2:])
    model.eval()
    assert (read(slice(2, 4)) - whole_BTV[2:]).abs().max() > 0.01


@pytest.mark.parametrize("targets", ["queries", "query,", "head", "query.value"])
def test_layers_that_are_not_there_are_named(targets: str) -> None:
    with pytest.raises(ValueError, match="expected 'all' or names out of down, gate, key, out, query, up, value, got"):
        add_lora(random_model(WIDE), rank=1, alpha=1.0, targets=targets)
    with pytest.raises(ValueError, match="there are none"):
        add_lora(nn.Linear(3, 3), rank=1, alpha=1.0)


@pytest.mark.parametrize("names", [ATTENTION + FEED_FORWARD, ("query", "value")])
def test_it_is_pefts_to_rounding(names: tuple[str, ...]) -> None:
    peft = pytest.importorskip("peft")
    ours = adapted(targets=",".join(names)).double()
    options = {"r": 3, "lora_alpha": 5, "lora_dropout": 0.0, "target_modules": list(names)}
    theirs = peft.inject_adapter_in_model(peft.LoraConfig(**options), random_model(WIDE).double())
    pairs = [
        (getattr(module, f"lora_{x}"), getattr(theirs.get_submodule(name), f"lora_{x.upper()}")["default"].weight)
        for name, module in ours.named_modules()
        if isinstance(module, LoRALinear)
        for x in "ab"
    ]
    learning = {id(tensor) for _, tensor in pairs}
    assert learning == {id(tensor) for tensor in theirs.parameters() if tensor.requires_grad}
    with torch.no_grad():
        for own, other in pairs:
            other.copy_(own)
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1)
    optimizer = build_optimizer(ours, config, bf16=False)
    other_optimizer = torch.optim.AdamW([other for _, other in pairs], lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    tokens_BT = random_tokens(ours)
    for step in range(4):
        losses = [loss_of(model, tokens_BT) for model in (ours, theirs)]
        torch.testing.assert_close(*losses, rtol=0, atol=1e-11)
        for loss in losses:
            loss.backward()
        for own, other in pairs:
            torch.testing.assert_close(own.grad, other.grad, rtol=0, atol=1e-9 if step else 1e-12)
        optimizer.step()
        other_optimizer.step()
        optimizer.zero_grad()
        other_optimizer.zero_grad()
    for own, other in pairs:
        torch.testing.assert_close(own, other, rtol=0, atol=1e-9)
    for module in theirs.modules():
        if hasattr(module, "merge"):
            module.merge()
    merge_lora(ours)
    torch.testing.assert_close(ours(tokens_BT), theirs(tokens_BT), rtol=0, atol=1e-8)
