"""The layers against their equations, written out in plain tensor operations."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.config import ModelConfig
from layers import (
    Block,
    LearnedPositions,
    Memory,
    MultiHeadAttention,
    RMSNorm,
    RotaryAngles,
    RotaryPositions,
    SinusoidalPositions,
    SwiGLU,
    attention,
)
from layers.positions import apply_rotary


def attention_by_hand(
    layer: MultiHeadAttention, x: Tensor, memory: Tensor, allowed_TS: Tensor, angles: RotaryAngles | None = None
) -> Tensor:
    """Attention one head at a time."""
    size = layer.head_size
    q, k, v = layer.query(x), layer.key(memory), layer.value(memory)
    group = q.size(-1) // k.size(-1)
    heads = []
    for h in range(q.size(-1) // size):
        kv = h // group
        q_h = layer.query_norm(q[..., h * size : (h + 1) * size])
        k_h = layer.key_norm(k[..., kv * size : (kv + 1) * size])
        if angles is not None:
            q_h, k_h = apply_rotary(q_h, angles), apply_rotary(k_h, angles)
        scores = q_h @ k_h.mT / math.sqrt(size)
        weights = scores.masked_fill(~allowed_TS, -torch.inf).softmax(-1)
        heads.append(weights @ v[..., kv * size : (kv + 1) * size])
    return layer.out(torch.cat(heads, -1))


def test_rms_norm_follows_its_equation() -> None:
    norm = RMSNorm(6)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1.0, 7.0))
    x = torch.randn(2, 3, 6) * 5
    expected = x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    assert norm(torch.zeros(1, 6)).isfinite().all()


def test_rms_norm_keeps_the_dtype() -> None:
    assert RMSNorm(4)(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_swiglu_follows_its_equation() -> None:
    layer = SwiGLU(4, 10)
    x = torch.randn(2, 3, 4)
    gate = x @ layer.gate.weight.T
    expected = (gate * torch.sigmoid(gate) * (x @ layer.up.weight.T)) @ layer.down.weight.T
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("rotary", [None, RotaryPositions(7, 4)], ids=["without rotary", "rotary"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("num_kv_heads", [None, 2, 1])
def test_causal_attention_follows_its_equation(
    num_kv_heads: int | None, qk_norm: bool, rotary: RotaryPositions | None
) -> None:
    layer = MultiHeadAttention(d_model=16, num_heads=4, num_kv_heads=num_kv_heads, qk_norm=qk_norm)
    x = torch.randn(2, 7, 16)
    allowed = torch.ones(7, 7, dtype=torch.bool).tril()
    angles = None if rotary is None else rotary(7)
    expected = attention_by_hand(layer, x, x, allowed, angles)
    torch.testing.assert_close(layer(x, causal=True, rotary=angles), expected)


def test_cross_attention_reads_the_memory_and_keeps_to_its_mask() -> None:
    layer = MultiHeadAttention(d_model=16, num_heads=4, num_kv_heads=2)
    x, memory = torch.randn(1, 3, 16), torch.randn(1, 5, 16)
    mask = torch.tensor([True, True, False, True, False])
    expected = attention_by_hand(layer, x, memory, mask.expand(3, 5))
    torch.testing.assert_close(layer(x, memory, mask_BTS=mask[None, None]), expected)


def test_causal_and_padding_masks_join() -> None:
    layer = MultiHeadAttention(d_model=8, num_heads=2)
    x = torch.randn(1, 4, 8)
    mask = torch.tensor([True, False, True, True])
    allowed = torch.ones(4, 4, dtype=torch.bool).tril() & mask
    torch.testing.assert_close(
        layer(x, causal=True, mask_BTS=mask[None, None]), attention_by_hand(layer, x, x, allowed)
    )


def test_where_no_kernel_takes_groups_under_a_mask_heads_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = MultiHeadAttention(d_model=16, num_heads=4, num_kv_heads=2), torch.randn(2, 5, 16)
    mask_BTS = torch.ones(2, 5, 5, dtype=torch.bool).tril()
    expected, asked, fused = layer(x, mask_BTS=mask_BTS), [], F.scaled_dot_product_attention

    def kernel(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        asked.append((k.size(1), v.size(1), options["enable_gqa"]))
        return fused(q, k, v, **options)

    monkeypatch.setattr(attention, "UNGROUPED_WITH_MASK", "cpu")
    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    torch.testing.assert_close(layer(x, mask_BTS=mask_BTS), expected)
    torch.testing.assert_close(layer(x, causal=True), expected)
    assert asked == [(4, 4, False), (2, 2, True)]


def test_no_token_sees_a_later_one() -> None:
    layer = MultiHeadAttention(d_model=16, num_heads=2)
    x = torch.randn(1, 6, 16, requires_grad=True)
    layer(x, causal=True)[0, 2].sum().backward()
    assert x.grad is not None
    assert x.grad[0, 3:].eq(0).all()
    assert x.grad[0, :3].ne(0).any(-1).all()


def test_dropout_acts_in_training_only() -> None:
    layer = MultiHeadAttention(d_model=16, num_heads=2, dropout=0.5)
    x = torch.randn(1, 6, 16)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(("d_model", "num_heads", "num_kv_heads"), [(10, 4, None), (16, 4, 3)])
def test_heads_that_do_not_divide_are_an_error(d_model: int, num_heads: int, num_kv_heads: int | None) -> None:
    with pytest.raises(ValueError, match="to divide"):
        MultiHeadAttention(d_model=d_model, num_heads=num_heads, num_kv_heads=num_kv_heads)


def test_sinusoidal_positions_follow_their_equation() -> None:
    positions = SinusoidalPositions(20, 6)
    places = torch.tensor([[7, 8, 3], [0, 19, 2]])
    added = positions(torch.zeros(2, 3, 6), places)
    for b, t, i in itertools.product(range(2), range(3), range(3)):
        angle = places[b, t].item() / 10_000 ** (2 * i / 6)
        assert added[b, t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert added[b, t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert positions(torch.zeros(1, 4, 6, dtype=torch.bfloat16), places[:1, :1]).dtype == torch.bfloat16


def test_learned_positions_are_those_of_each_sequence() -> None:
    positions = LearnedPositions(9, 4)
    x, places = torch.randn(2, 3, 4), torch.tensor([[5, 6, 7], [0, 8, 2]])
    for b, t in itertools.product(range(2), range(3)):
        torch.testing.assert_close(positions(x, places)[b, t], x[b, t] + positions.embedding.weight[places[b, t]])


@pytest.mark.parametrize("kind", [SinusoidalPositions, LearnedPositions])
def test_positions_count_from_0_where_none_are_given(kind: type[SinusoidalPositions] | type[LearnedPositions]) -> None:
    positions, x = kind(9, 4), torch.randn(2, 5, 4)
    assert torch.equal(positions(x), positions(x, torch.arange(5).expand(2, 5)))


def at(rotary: RotaryPositions, x_D: Tensor, position: int) -> Tensor:
    """One query or key, turned for a position."""
    return apply_rotary(x_D.view(1, 1, 1, -1), rotary(1, torch.tensor([[position]]))).flatten()


def test_rotary_products_depend_on_distance_alone_and_keep_lengths() -> None:
    rotary = RotaryPositions(50, 8)
    q, k = torch.randn(2, 8)
    products = [(at(rotary, q, place) @ at(rotary, k, place - 3)).item() for place in (3, 10, 40)]
    assert products == pytest.approx([products[0]] * 3, abs=1e-5)
    assert at(rotary, q, 33).norm().item() == pytest.approx(q.norm().item(), abs=1e-5)
    assert torch.equal(at(rotary, q, 0), q)


def test_rotary_turns_each_pair_by_its_angle() -> None:
    turned = at(RotaryPositions(10, 4), torch.tensor([1.0, 0.0, 0.0, 1.0]), 5).tolist()
    slow = 5 / 10_000**0.5
    # Pairs are (0, 2) and (1, 3): (1, 0) turned by 5, and (0, 1) turned by 5 / 100.
    assert turned == pytest.approx([math.cos(5), -math.sin(slow), math.sin(5), math.cos(slow)], abs=1e-6)


def test_rotary_turns_each_token_of_each_sequence_in_all_heads() -> None:
    rotary, places = RotaryPositions(20, 4), torch.tensor([[3, 4, 0], [19, 0, 7]])
    x = torch.randn(2, 5, 3, 4)
    turned = apply_rotary(x, rotary(3, places))
    for b, h, t in itertools.product(range(2), range(5), range(3)):
        torch.testing.assert_close(turned[b, h, t], at(rotary, x[b, h, t], int(places[b, t])))
    assert torch.equal(apply_rotary(x, rotary(3)), apply_rotary(x, rotary(3, torch.arange(3).expand(2, 3))))
    assert apply_rotary(x.bfloat16(), rotary(3, places)).dtype == torch.bfloat16


@pytest.mark.parametrize("has_amx", [True, False])
def test_bf16_attention_on_a_cpu_stays_near_fp32_whatever_the_kernel(
    monkeypatch: pytest.MonkeyPatch, has_amx: bool
) -> None:
    monkeypatch.setattr(attention, "CPU_HAS_AMX", has_amx)
    layer = MultiHeadAttention(d_model=32, num_heads=4, num_kv_heads=2, qk_norm=True)
    x = torch.randn(2, 9, 32)
    exact = layer(x, causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x, causal=True)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() < 0.02 * exact.norm()


@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_attention_of_one_query_is_torchs(heads: int, dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, heads, 1, 8), torch.randn(3, 2, 11, 8), torch.randn(3, 2, 11, 8)
    mask = torch.arange(11) <= torch.tensor([10, 0, 4]).view(3, 1, 1, 1)
    for seen in (None, mask):
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
        alone = attention.attend_with_one_query(q.to(dtype), k.to(dtype), v.to(dtype), seen)
        assert alone.dtype == dtype
        assert (alone - expected).norm() < (1e-6 if dtype == torch.float32 else 0.01) * expected.norm()


def test_odd_sizes_have_no_pairs() -> None:
    with pytest.raises(ValueError, match="even size"):
        RotaryPositions(4, 5)


def test_a_block_takes_a_memory_where_it_has_cross_attention_and_only_there() -> None:
    shape = ModelConfig(d_model=8, num_heads=2, d_ff=8)
    memory = Memory(states_BSM=torch.zeros(1, 2, 8), mask_B1S=torch.ones(1, 1, 2, dtype=torch.bool), rotary=None)
    for cross, given in ((False, memory), (True, None)):
        with pytest.raises(ValueError, match="a block takes a memory where it has cross-attention, and only there"):
            Block(shape, cross=cross)(torch.zeros(1, 3, 8), None, memory=given)
