"""The GPT: cache, parameter count, initialisation, limits."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gpt.config import GPTConfig, ModelConfig
from gpt.model import GPT
from training.config.command_line import parse_config_text

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
    L, M, F = config.num_layers, config.d_model, config.d_ff
    D = M // config.num_heads
    K = config.num_kv_heads or config.num_heads
    count = V * M + L * (2 * M * M + 2 * M * K * D + 3 * M * F + 2 * M) + M
    count += 0 if config.tie_embeddings else V * M
    count += 2 * L * D if config.qk_norm else 0
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
    ],
)
def test_bad_shapes_name_field_value_and_range(change: dict[str, int | float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **change)
