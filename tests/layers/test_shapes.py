"""Layers in the shapes of other models: against torch's own block, transformers' frequencies, and their equations."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import OF_GPT2
from torch import Tensor, nn

from gpt.config import ModelConfig
from layers import GELU, Block, LayerNorm, MultiHeadAttention, RotaryPositions, SwiGLU
from layers.positions import build_positions
from layers.products import MIN_TOKENS, linears


def drawn(module: Any) -> Any:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.1, 0.4, generator=generator)
    return module


def torchs_block(block: Block, d_model: int, heads: int, d_ff: int) -> nn.TransformerEncoderLayer:
    """torch's pre-norm block with the same weights."""
    theirs = nn.TransformerEncoderLayer(
        *(d_model, heads, d_ff, 0.0), activation="gelu", layer_norm_eps=1e-3, batch_first=True, norm_first=True
    ).double()
    of_attention = [block.attention.get_submodule(name) for name in ("query", "key", "value")]
    with torch.no_grad():
        for kind in ("weight", "bias"):
            joined = torch.cat([layer.get_parameter(kind) for layer in of_attention])
            theirs.self_attn.get_parameter(f"in_proj_{kind}").copy_(joined)
            for name, ours in {
                "self_attn.out_proj": block.attention.out,
                "norm1": block.attention_norm,
                "norm2": block.feed_forward_norm,
                "linear1": block.feed_forward.up,
                "linear2": block.feed_forward.down,
            }.items():
                theirs.get_submodule(name).get_parameter(kind).copy_(ours.get_parameter(kind))
    return theirs


@pytest.mark.parametrize("tokens", [7, MIN_TOKENS])
def test_a_block_as_gpt2s_is_torchs_own(tokens: int) -> None:
    block = drawn(Block(ModelConfig(d_model=12, num_heads=3, d_ff=20, norm_eps=1e-3, **OF_GPT2)).double())
    theirs, x = torchs_block(block, 12, 3, 20), torch.randn(2, tokens, 12, dtype=torch.float64)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    results = [block(inputs[0], None, causal=True), theirs(inputs[1], src_mask=~seen)]
    for result in results:
        result.backward(torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x))
    pairs = [results, [i.grad for i in inputs]]
    pairs += [[a.weight.grad, b.weight.grad] for a, b in ((block.feed_forward.up, theirs.linear1),)]
    pairs += [[a.bias.grad, b.bias.grad] for a, b in ((block.attention_norm, theirs.norm1),)]
    joined = torch.cat([block.attention.get_submodule(name).bias.grad for name in ("query", "key", "value")])
    for ours, expected in [*pairs, [joined, theirs.self_attn.in_proj_bias.grad]]:
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)


def test_a_block_as_llamas_follows_its_equations() -> None:
    """Heads whose size stands apart from the width, fewer key-value heads, and a larger epsilon."""
    options: dict[str, Any] = {"qk_norm": False, "norm_eps": 0.5, "num_kv_heads": 1, "head_dim": 8}
    block = drawn(Block(ModelConfig(d_model=12, num_heads=3, d_ff=20, **options)))
    x, rotary = torch.randn(2, 9, 12), RotaryPositions(9, 8, 500_000.0)
    assert block.attention.query.weight.shape == (24, 12)
    assert block.attention.key.weight.shape == (8, 12)

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 0.5).rsqrt() * weight

    def turned(x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(9.0), 500_000.0 ** (-torch.arange(4) / 4))
        pairs = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((pairs.real, pairs.imag), -1)

    normed, attention = norm(x, block.attention_norm.weight), block.attention
    key, value = turned(normed @ attention.key.weight.T), normed @ attention.value.weight.T
    heads = []
    for query in (normed @ attention.query.weight.T).chunk(3, -1):
        scores = turned(query) @ key.mT / math.sqrt(8)
        scores = scores.masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), -torch.inf)
        heads.append(scores.softmax(-1) @ value)
    x_after = x + torch.cat(heads, -1) @ attention.out.weight.T
    layer, normed = block.feed_forward, norm(x_after, block.feed_forward_norm.weight)
    hidden = F.silu(normed @ layer.gate.weight.T) * (normed @ layer.up.weight.T)
    torch.testing.assert_close(block(x, rotary(9), causal=True), x_after + hidden @ layer.down.weight.T)


@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize(
    ("written", "theirs"),
    [
        (None, {"rope_type": "default"}),
        ("linear:4", {"rope_type": "linear", "factor": 4.0}),
        ("linear:2.5", {"rope_type": "linear", "factor": 2.5}),
        ("llama3:8:1:4:8192", {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": 8.0, "length": 8192}),
        ("llama3:32:1.5:4:64", {"low_freq_factor": 1.5, "high_freq_factor": 4.0, "factor": 32.0, "length": 64}),
    ],
)
def test_rotary_positions_turn_as_transformers_does(written: str | None, theirs: dict[str, Any], theta: float) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    asked = {"rope_type": "llama3", "rope_theta": theta} | theirs
    if "length" in asked:
        asked["original_max_position_embeddings"] = asked.pop("length")
    shape = {"hidden_size": 96, "num_attention_heads": 3, "head_dim": 64, "max_position_embeddings": 100_000}
    config = transformers.LlamaConfig(**shape, rope_parameters=asked)
    places = torch.arange(200)[None]
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), places)
    none, rotary = build_positions("rotary", max_len=200, d_model=96, head_size=64, theta=theta, scaling=written)
    assert none is None
    assert rotary is not None
    # Theirs are angles of fp32: at place 199 it is 1e-5 beside it.
    torch.testing.assert_close(rotary.cos_TD, cos[0], rtol=0, atol=3e-5)
    torch.testing.assert_close(rotary.sin_TD, sin[0], rtol=0, atol=3e-5)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_follows_its_equation(approximate: str) -> None:
    layer, x = drawn(GELU(4, 10, bias=True, approximate=approximate)), torch.randn(2, 3, 4)
    up = x @ layer.up.weight.T + layer.up.bias
    inside = math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)
    share = torch.tanh(inside) if approximate == "tanh" else torch.erf(up / math.sqrt(2))
    expected = (0.5 * up * (1 + share)) @ layer.down.weight.T + layer.down.bias
    torch.testing.assert_close(layer(x), expected)


def test_swiglu_adds_its_biases() -> None:
    layer, x = drawn(SwiGLU(4, 10, bias=True)), torch.randn(2, MIN_TOKENS, 4)
    gate, up = x @ layer.gate.weight.T + layer.gate.bias, x @ layer.up.weight.T + layer.up.bias
    torch.testing.assert_close(layer(x), (gate * gate.sigmoid() * up) @ layer.down.weight.T + layer.down.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_layer_norm_follows_its_equation_in_the_dtype_that_comes_in(dtype: torch.dtype) -> None:
    """Also where its weights have another, as they have in shards."""
    norm, x = drawn(LayerNorm(6, eps=0.1)), 5 * torch.randn(2, 3, 6) + 3
    spread = (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)
    expected = (x - x.mean(-1, keepdim=True)) / (spread + 0.1).sqrt() * norm.weight + norm.bias
    normed = norm(x.to(dtype))
    assert normed.dtype == dtype
    torch.testing.assert_close(normed.float(), expected, rtol=0, atol=0.1 if dtype == torch.bfloat16 else 1e-5)
    rounded = norm.bfloat16()(x)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("with_bias", [(True, True, True), (False, False, False), (True, False, True)])
def test_products_side_by_side_are_those_of_each_with_its_bias(with_bias: tuple[bool, ...]) -> None:
    layers = [drawn(nn.Linear(8, 2 + n, bias=bias)) for n, bias in enumerate(with_bias)]
    for tokens in (MIN_TOKENS - 1, MIN_TOKENS):
        x = torch.randn(tokens, 8)
        products = linears(x, *layers)
        side_by_side = tokens == MIN_TOKENS and len(set(with_bias)) == 1
        assert len(products) == (1 if side_by_side else 3)
        torch.testing.assert_close(torch.cat(products, -1), torch.cat([layer(x) for layer in layers], -1))


def test_attention_with_biases_and_a_head_size_of_its_own() -> None:
    layer = drawn(MultiHeadAttention(d_model=8, num_heads=3, head_size=4, bias=True))
    x = torch.randn(1, 1, 8)
    (value,), single = layer.value(x), layer(x, causal=True)
    torch.testing.assert_close(single[0], value @ layer.out.weight.T + layer.out.bias)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters() if "norm" not in name} == {
        **{f"{name}.weight": (12, 8) for name in ("query", "key", "value")},
        **{f"{name}.bias": (12,) for name in ("query", "key", "value")},
        **{"out.weight": (8, 12), "out.bias": (8,)},
    }
