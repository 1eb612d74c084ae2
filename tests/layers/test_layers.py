"""The layers against their equations, written out in plain tensor operations."""

import math

import pytest
import torch
from torch import Tensor

from layers import (
    KVCache,
    LearnedPositions,
    MultiHeadAttention,
    RMSNorm,
    RotaryPositions,
    SinusoidalPositions,
    SwiGLU,
    attention,
)


def attention_by_hand(layer: MultiHeadAttention, x: Tensor, memory: Tensor, allowed_TS: Tensor) -> Tensor:
    """Attention one head at a time."""
    size = layer.head_size
    q, k, v = layer.query(x), layer.key(memory), layer.value(memory)
    group = q.size(-1) // k.size(-1)
    heads = []
    for h in range(q.size(-1) // size):
        kv = h // group
        q_h = layer.query_norm(q[..., h * size : (h + 1) * size])
        k_h = layer.key_norm(k[..., kv * size : (kv + 1) * size])
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


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("num_kv_heads", [None, 2, 1])
def test_causal_attention_follows_its_equation(num_kv_heads: int | None, qk_norm: bool) -> None:
    layer = MultiHeadAttention(d_model=16, num_heads=4, num_kv_heads=num_kv_heads, qk_norm=qk_norm)
    x = torch.randn(2, 7, 16)
    allowed = torch.ones(7, 7, dtype=torch.bool).tril()
    torch.testing.assert_close(layer(x, causal=True), attention_by_hand(layer, x, x, allowed))


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


def test_attention_in_chunks_over_a_cache_equals_attention_at_once() -> None:
    layer = MultiHeadAttention(d_model=16, num_heads=4, num_kv_heads=2, qk_norm=True)
    rotary = RotaryPositions(8, layer.head_size)
    x = torch.randn(2, 8, 16)
    whole = layer(x, causal=True, rotary=rotary)
    cache = KVCache(num_layers=1, batch_size=2, num_kv_heads=2, max_len=8, head_size=4)
    parts = [layer(part, causal=True, rotary=rotary, cache=cache.layers[0]) for part in x.split([3, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)


def test_cache_refuses_what_does_not_fit_and_starts_over_after_reset() -> None:
    cache = KVCache(num_layers=2, batch_size=1, num_kv_heads=1, max_len=3, head_size=2)
    new = torch.ones(1, 1, 2, 2)
    cache.layers[0].append(new, new)
    with pytest.raises(ValueError, match="holds 3 tokens, 4 were asked for"):
        cache.layers[0].append(new, new)
    assert cache.length == 2
    cache.reset()
    keys, values = cache.layers[0].append(2 * new, 3 * new)
    assert torch.equal(keys, 2 * new)
    assert torch.equal(values, 3 * new)


def test_sinusoidal_positions_follow_their_equation() -> None:
    positions = SinusoidalPositions(20, 6)
    added = positions(torch.zeros(1, 5, 6), start=7)[0]
    for t in range(5):
        for i in range(3):
            angle = (7 + t) / 10_000 ** (2 * i / 6)
            assert added[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert added[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_learned_positions_are_added_from_start() -> None:
    positions = LearnedPositions(9, 4)
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(positions(x, start=5), x + positions.embedding.weight[5:8])


def test_rotary_products_depend_on_distance_alone_and_keep_lengths() -> None:
    rotary = RotaryPositions(50, 8)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)
    products = [(rotary(q, start) * rotary(k, start - 3)).sum().item() for start in (3, 10, 40)]
    assert products == pytest.approx([products[0]] * 3, abs=1e-5)
    assert rotary(q, 33).norm().item() == pytest.approx(q.norm().item(), abs=1e-5)
    assert torch.equal(rotary(q, 0), q)


def test_rotary_turns_each_pair_by_its_angle() -> None:
    x = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 1, 4)
    turned = RotaryPositions(10, 4)(x, 5).flatten().tolist()
    slow = 5 / 10_000**0.5
    # Pairs are (0, 2) and (1, 3): (1, 0) turned by 5, and (0, 1) turned by 5 / 100.
    assert turned == pytest.approx([math.cos(5), -math.sin(slow), math.sin(5), math.cos(slow)], abs=1e-6)


@pytest.mark.parametrize("has_amx", [True, False])
def test_bf16_attention_on_a_cpu_stays_near_fp32_whatever_the_kernel(
    monkeypatch: pytest.MonkeyPatch, has_amx: bool
) -> None:
    monkeypatch.setattr(attention, "_cpu_has_amx", lambda: has_amx)
    layer = MultiHeadAttention(d_model=32, num_heads=4, num_kv_heads=2, qk_norm=True)
    x = torch.randn(2, 9, 32)
    exact = layer(x, causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x, causal=True)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_odd_sizes_have_no_pairs() -> None:
    with pytest.raises(ValueError, match="even size"):
        RotaryPositions(4, 5)
