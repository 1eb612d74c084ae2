"""The GPT: cache, parameter count, initialisation, limits."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gpt_models import OTHER_SHAPES

from gpt.config import GPTConfig, ModelConfig
from gpt.model import GPT
from training.config.command_line import parse_config_text
from training.config.sections import OptimizerConfig
from training.optimizer import build_optimizer

CONFIGS = Path(__file__).parents[2] / "configs/gpt"
SMALL = ModelConfig(num_layers=3, d_model=24, num_heads=4, d_ff=40, max_len=12)
POSITIONS = ["sinusoidal", "learned", "rotary"]


def random_model(config: ModelConfig, vocab_size: int = 11) -> GPT:
    """A model none of whose weights is zero, so that no part of it is idle."""
    model = GPT(config, vocab_size).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator).add_(0.01)
    return model


@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("num_kv_heads", [None, 2, 1])
@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_cached_logits_equal_uncached_ones_for_every_length(
    positions: str, num_kv_heads: int | None, qk_norm: bool, tie_embeddings: bool
) -> None:
    options = {"positions": positions, "num_kv_heads": num_kv_heads, "qk_norm": qk_norm}
    model = random_model(replace(SMALL, tie_embeddings=tie_embeddings, **options))
    tokens = torch.randint(11, (2, SMALL.max_len), generator=torch.Generator().manual_seed(1))
    cache = model.new_cache(batch_size=2)
    for length in range(1, SMALL.max_len + 1):
        uncached = model(tokens[:, :length])[:, -1]
        cached = model(tokens[:, length - 1 : length], cache)[:, -1]
        assert (cached - uncached).abs().max() <= 1e-5 * uncached.abs().max()


@pytest.mark.parametrize("prompt_length", range(1, SMALL.max_len))
@torch.no_grad()
def test_a_prompt_read_at_once_equals_one_read_by_tokens(prompt_length: int) -> None:
    model = random_model(SMALL)
    tokens = torch.randint(11, (1, SMALL.max_len), generator=torch.Generator().manual_seed(2))
    cache = model.new_cache()
    logits = torch.cat((model(tokens[:, :prompt_length], cache), model(tokens[:, prompt_length:], cache)), 1)
    whole = model(tokens)
    assert (logits - whole).abs().max() <= 1e-5 * whole.abs().max()


@pytest.mark.parametrize("positions", POSITIONS)
@torch.no_grad()
def test_a_place_says_where_tokens_stand_and_prediction_follows_reading(positions: str) -> None:
    model = random_model(replace(SMALL, positions=positions))
    tokens = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(2))
    cache = model.new_cache(2)
    # The second text has two tokens less: what pads it counts for nothing, and its next token stands where they end.
    model(tokens[:, :5], cache, cache.extend(5, [5, 3]))
    following = torch.stack((tokens[0, 5:9], tokens[1, 3:7]))
    logits = model.logits(model.hidden_states(following, cache, cache.extend(4)))
    whole = model(tokens)
    expected = torch.stack((whole[0, 5:9], whole[1, 3:7]))
    assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert cache.lengths == [9, 7]


def formula(config: ModelConfig, V: int) -> int:
    """The count of the module's docstring."""
    L, M, F, H = config.num_layers, config.d_model, config.d_ff, config.num_heads
    D = config.head_dim or M // H
    K = config.num_kv_heads or H
    count = V * M + L * (2 * M * H * D + 2 * M * K * D + 3 * M * F + 2 * M) + M
    count += 0 if config.tie_embeddings else V * M
    count += 2 * L * D if config.qk_norm else 0
    count += (2 * L + 1) * M if config.norm == "layer" else 0
    count -= L * M * F if config.activation != "swiglu" else 0
    count += L * (H * D + 2 * K * D + M) if config.attention_bias else 0
    count += L * ((2 if config.activation == "swiglu" else 1) * F + M) if config.feed_forward_bias else 0
    return count + (config.max_len * M if config.positions == "learned" else 0)


@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("num_kv_heads", [None, 2])
@pytest.mark.parametrize("positions", POSITIONS)
def test_parameter_count_follows_the_formula(
    positions: str, num_kv_heads: int | None, qk_norm: bool, tie_embeddings: bool
) -> None:
    config = replace(
        SMALL, positions=positions, num_kv_heads=num_kv_heads, qk_norm=qk_norm, tie_embeddings=tie_embeddings
    )
    assert sum(p.numel() for p in GPT(config, 11).parameters()) == formula(config, 11)


@pytest.mark.parametrize("shape", [*OTHER_SHAPES.values(), replace(SMALL, feed_forward_bias=True)])
def test_parameters_and_operations_of_other_shapes_are_counted(shape: ModelConfig) -> None:
    model = GPT(shape, 11)
    assert sum(p.numel() for p in model.parameters()) == formula(shape, 11)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "positions" not in name]
    weights = sum(p.numel() for p in matrices) - (0 if shape.tie_embeddings else 11 * shape.d_model)
    of_attention = 12 * shape.num_layers * shape.num_heads * shape.head_size * shape.max_len
    assert model.flops_per_token() == 6 * weights + of_attention


@pytest.mark.parametrize("shape", OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_other_shapes_begin_at_ln_v_without_biases_and_learn(shape: ModelConfig) -> None:
    model = GPT(replace(shape, tie_embeddings=False), 11)
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    model.init_weights(drawn)
    named = dict(model.named_parameters())
    assert all(p.eq(0).all() for name, p in named.items() if name.endswith(".bias"))
    assert all(p.eq(1).all() for name, p in named.items() if name.endswith("norm.weight"))
    tokens = torch.randint(11, (2, 12), generator=drawn)
    loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(math.log(11), abs=1e-6)
    entered, _ = model.embed(tokens, None)
    expected = 24**-0.5 if shape.embedding_scale == 1 else 1.0
    assert entered.std().item() == pytest.approx(expected, rel=0.2)
    before = {name: p.detach().clone() for name, p in named.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(4):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
    unmoved = {name.rpartition("key.bias")[2] for name, p in named.items() if torch.equal(p, before[name])}
    assert unmoved <= {""}, "but for a bias of keys, which changes all scores of a query alike"


@pytest.mark.parametrize("shape", OTHER_SHAPES.values(), ids=OTHER_SHAPES)
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_only_matrices_of_blocks_are_decayed_and_follow_muon(name: Any, shape: ModelConfig) -> None:
    model = GPT(shape, 11)
    decayed, rest = build_optimizer(model, OptimizerConfig(name=name), bf16=False).param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    assert all("blocks" in names[id(p)] and p.ndim == 2 for p in decayed["params"])
    assert len(decayed["params"]) == shape.num_layers * (7 if shape.activation == "swiglu" else 6)
    assert (decayed["muon"], rest["muon"], rest["weight_decay"]) == (name == "muon", False, 0.0)
    assert len(decayed["params"]) + len(rest["params"]) == len(names)


@pytest.mark.parametrize("shape", OTHER_SHAPES.values(), ids=OTHER_SHAPES)
def test_bf16_changes_a_loss_and_its_gradients_by_no_more_than_rounding(shape: ModelConfig) -> None:
    model, found = random_model(replace(shape, qk_norm=True)).train(), []
    tokens = torch.randint(11, (4, 32), generator=torch.Generator().manual_seed(2))
    for bf16 in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1).float(), tokens.flatten())
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None] + [loss[None]]))
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()


def test_every_weight_learns_within_three_steps() -> None:
    model = GPT(replace(SMALL, positions="learned"), 11)
    model.init_weights(torch.Generator().manual_seed(0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        tokens = torch.randint(11, (2, 12))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
    assert [name for name, p in model.named_parameters() if torch.equal(p, before[name])] == []


def test_a_fresh_model_knows_nothing() -> None:
    model = GPT(SMALL, 11)
    model.init_weights(torch.Generator().manual_seed(0))
    tokens = torch.randint(11, (2, 12))
    loss = torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(math.log(11), abs=1e-6)
    spread = model.blocks[0].get_parameter("feed_forward.gate.weight").std().item()
    assert spread == pytest.approx(24**-0.5, rel=0.1)
    assert model.blocks[0].get_parameter("feed_forward.down.weight").eq(0).all()


def test_initialisation_depends_on_its_generator_alone() -> None:
    first, second = GPT(SMALL, 11), GPT(SMALL, 11)
    first.init_weights(torch.Generator().manual_seed(5))
    torch.rand(7)
    second.init_weights(torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_tied_embeddings_are_stored_once() -> None:
    names = [name for name in GPT(replace(SMALL, tie_embeddings=True), 11).state_dict() if "embedding" in name]
    assert names == ["embedding.weight"]


def test_too_long_a_sequence_is_an_error() -> None:
    with pytest.raises(ValueError, match="at most 12 tokens, got 13"):
        GPT(SMALL, 11)(torch.zeros(1, 13, dtype=torch.long))


@torch.no_grad()
def test_a_cache_is_as_long_as_asked_and_never_longer_than_the_context() -> None:
    model = random_model(SMALL).to(torch.bfloat16)
    assert [model.new_cache(2, length).max_len for length in (None, 5, 12, 100)] == [12, 5, 12, 12]
    assert model.new_cache().dtype == torch.bfloat16
    with pytest.raises(ValueError, match="the cache holds 5 tokens of a sequence, 6 were asked for"):
        model(torch.zeros(1, 6, dtype=torch.long), model.new_cache(1, 5))


def load(name: str) -> GPTConfig:
    return parse_config_text(GPTConfig, (CONFIGS / name).read_text())


def test_seed_is_the_reference() -> None:
    config = load("seed.yaml")
    model = config.model
    assert (model.num_layers, model.d_model, model.num_heads, model.d_ff) == (12, 768, 12, 3072)
    assert (model.max_len, model.dropout, model.positions) == (512, 0.1, "sinusoidal")
    assert config.training.epochs == 50
    assert config.training.max_steps is None


def test_shakespeare_keeps_to_its_size() -> None:
    model = load("shakespeare.yaml").model
    assert (model.num_layers, model.d_model, model.num_heads, model.max_len) == (6, 384, 6, 256)
    with torch.device("meta"):
        assert sum(p.numel() for p in GPT(model, 65).parameters()) <= 10_800_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "model.num_layers must be at least 1, got 0"),
        ({"d_model": 25}, r"model.d_model must be a multiple of model.num_heads \(4\), got 25"),
        ({"d_model": 20}, r"model.d_model must be an even multiple of model.num_heads \(4\) with rotary positions"),
        ({"num_kv_heads": 3}, r"model.num_kv_heads must be null or a divisor of model.num_heads \(4\), got 3"),
        ({"num_kv_heads": 0}, "model.num_kv_heads must be null or a divisor"),
        ({"dropout": 1.0}, "model.dropout must be at least 0 and below 1, got 1.0"),
        ({"max_len": -1}, "model.max_len must be at least 1, got -1"),
        ({"head_dim": 5}, "model.head_dim must be null or at least 1, and even but for learned positions, got 5"),
        ({"head_dim": 0}, "model.head_dim must be null or at least 1"),
        ({"embedding_scale": 0.0}, "model.embedding_scale must be null or above 0, and finite, got 0.0"),
        ({"norm_eps": 0.0}, "model.norm_eps must be above 0, and finite, got 0.0"),
        ({"rope_theta": math.inf}, "model.rope_theta must be above 0, and finite, got inf"),
        ({"rope_scaling": "linear:0.5"}, "model.rope_scaling must be null, linear:FACTOR or llama3:FACTOR:LOW:HIGH"),
        ({"rope_scaling": "llama3:8:4:1:64"}, "model.rope_scaling must be null, .*, with LOW below HIGH, got 'llama3:"),
        ({"rope_scaling": "yarn:4"}, "model.rope_scaling must be null, .*, got 'yarn:4'"),
        ({"rope_scaling": "linear:2", "positions": "learned"}, "model.positions must be rotary with model.rope_theta"),
        ({"rope_theta": 1e6, "positions": "sinusoidal"}, "model.positions must be rotary with .*, got 'sinusoidal'"),
    ],
)
def test_bad_shapes_name_field_value_and_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)
