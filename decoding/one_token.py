"""A step of one token of one sequence, in sums of which torch.compile makes six kernels a block.

On a GPU such a step waits for kernels to begin, not for the memory, so that their number counts. What can meet in a
kernel is written so that it does; and what a compiled function returns is stored once, so that each function here is
a kernel or two:

- A product with one token is a sum for each output, which torch.compile writes together with what stands around it.
  Weights are read as they are stored, int8 as well, and summed in fp32.
- A norm before a product is applied behind it: each output sums the squares of the inputs beside its own products, so
  that no kernel has to come first; for LayerNorm also the inputs, and its own weights.
- With rotary positions a head is computed in two parts, its halves, so that the numbers that are rotated together meet.
- Attention takes the maximum and the sum of its weights anew for each output, in the kernel of the sum of the values.

Nothing but weights and cache is rounded to fewer bits than fp32.

Shapes: M model size, F feed-forward size, I inputs, H key-value heads, G query heads of a key-value head, P parts of a
head, E elements of a part, S slots of the cache, N rows of a layer's memory, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decoding.models import LanguageModel, unknown_parts
from layers import KVCache, RMSNorm, RotaryPositions
from layers.attention import MultiHeadAttention
from layers.block import Block
from layers.feed_forward import SwiGLU
from layers.norm import LayerNorm, Norm

LONG_CONTEXT = 2048
"""Beyond so many slots torch.compile may split the sums of attention over more kernels: a single one is slow there."""

Parts = Sequence[Tensor]


def supports_one_token_step(model: LanguageModel) -> bool:
    """Whether `OneTokenStep` knows all parts of a model, and is as exact as its dtype."""
    return not unknown_parts(model) and model.embedding.weight.dtype != torch.float64


class OneTokenStep:
    """Decodes a token of one sequence; its functions are compiled once, for all blocks.

    Args:
        model: In evaluation mode, one for which `supports_one_token_step` says yes.
        options: Of torch.compile.
    """

    def __init__(self, model: LanguageModel, options: dict[str, Any]) -> None:
        def compiled(function: Any, **more: Any) -> Any:
            settings: dict[str, Any] = {"options": options | more} if options else {}
            return torch.compile(function, fullgraph=True, **settings)

        self._model, self._parts = model, 1 if model.rotary is None else 2
        self._embed, self._project, self._head = compiled(_embed), compiled(_project), compiled(_head)
        self._attend = compiled(_attend, split_reductions=model.config.max_len > LONG_CONTEXT)
        self._mix, self._down = compiled(_mix), compiled(_down)

    def __call__(self, tokens_BT: Tensor, cache: KVCache) -> Tensor:
        """Logits after the token, (1, 1, V) in fp32, without moving the cache on."""
        x_M, rotary = self._embed(self._model, tokens_BT, cache), self._model.rotary
        for block, layer in zip(self._model.decoder_layers, cache.layers, strict=True):
            keys_PNE, values_PNE = (rows_ND.chunk(self._parts, 1) for rows_ND in layer.rows)
            queries = self._project(block, x_M, rotary, cache, keys_PNE, values_PNE)
            attended = self._attend(block.attention, *queries, cache, keys_PNE, values_PNE)
            x_M, hidden_F = self._mix(block, x_M, attended)
            x_M = self._down(block, x_M, hidden_F)
        return self._head(self._model, x_M)[None, None]


def _embed(model: LanguageModel, tokens_BT: Tensor, cache: KVCache) -> Tensor:
    x_BTM, _ = model.embed(tokens_BT, cache.lengths_B[:, None])
    return x_BTM.flatten().float()


def _project(
    block: Block, x_M: Tensor, rotary: RotaryPositions | None, cache: KVCache, keys_PNE: Parts, values_PNE: Parts
) -> tuple[Parts, Parts]:
    """Store the token's key and value.

    Returns:
        Its query, rotated, in parts of (H G, E), and its squares before that. Where there is a norm, its division is
        left to attention: it would be a kernel of its own.
    """
    attention, rows_H = block.attention, cache.next_positions(1, None).slot_mapping_N
    shape = -1, len(keys_PNE), attention.head_size // len(keys_PNE)

    def parts(layer: nn.Module) -> Parts:
        indices = range(len(keys_PNE))
        return [_normed_product(block.attention_norm, layer, x_M, shape, (slice(None), index)) for index in indices]

    keys, queries = parts(attention.key), parts(attention.query)
    squares = [part.square() for part in queries] if isinstance(attention.query_norm, RMSNorm) else []
    scale_H1 = _inverse_size(attention.key_norm, sum(part.square().mean(-1, keepdim=True) for part in keys) / len(keys))
    keys = [part * scale_H1 for part in _rotated(attention.key_norm, keys, rotary, cache)]
    for rows_PNE, new_PHE in ((keys_PNE, keys), (values_PNE, parts(attention.value))):
        for rows_NE, new_HE in zip(rows_PNE, new_PHE, strict=True):
            rows_NE.index_copy_(0, rows_H, new_HE.to(rows_NE.dtype))
    return _rotated(attention.query_norm, queries, rotary, cache), squares


def _attend(
    attention: MultiHeadAttention,
    queries: Parts,
    squares: Parts,
    cache: KVCache,
    keys_PNE: Parts,
    values_PNE: Parts,
) -> Parts:
    """What the token gathers from the cache, in parts of (H, G, E)."""
    heads, elements = (len(keys_PNE[0]) - 1) // cache.max_len, keys_PNE[0].size(1)
    keys, values = ([rows[:-1].view(heads, 1, -1, elements).float() for rows in of] for of in (keys_PNE, values_PNE))

    def sums(parts: Parts, of: Parts) -> Any:
        products = [part.view(heads, -1, 1, elements) * other for part, other in zip(parts, of, strict=True)]
        return sum(products[1:], products[0]).sum(-1)

    scores_HGS = sums(queries, keys) / attention.head_size**0.5
    if squares:
        ones = [torch.ones_like(key) for key in keys]
        scores_HGS = scores_HGS * _inverse_size(attention.query_norm, sums(squares, ones) / attention.head_size)
    mask_BTS = cache.next_positions(1, cache.max_len).mask_BTS
    assert mask_BTS is not None
    scores_HGSE = scores_HGS.masked_fill(~mask_BTS[0], -torch.inf)[..., None].expand(-1, -1, -1, elements)
    weights_HGSE = (scores_HGSE - scores_HGSE.amax(-2, keepdim=True)).exp()
    return [(weights_HGSE * value).sum(-2) / weights_HGSE.sum(-2) for value in values]


def _mix(block: Block, x_M: Tensor, attended: Parts) -> tuple[Tensor, Tensor]:
    """The token after attention, and what the feed-forward layer holds of it, (F,)."""
    weight_MHPE = block.attention.out.weight.view(len(x_M), -1, len(attended), attended[0].size(-1)).float()
    sums_M = sum((weight_MHPE[:, :, p] * part.flatten(0, 1)).sum((-2, -1)) for p, part in enumerate(attended))
    x_M = x_M + sums_M * _scale(block.attention.out) + _bias(block.attention.out)
    feed_forward, norm = block.feed_forward, block.feed_forward_norm
    up_F = _normed_product(norm, feed_forward.up, x_M)
    if isinstance(feed_forward, SwiGLU):
        return x_M, F.silu(_normed_product(norm, feed_forward.gate, x_M)) * up_F
    return x_M, F.gelu(up_F, approximate=feed_forward.approximate)


def _down(block: Block, x_M: Tensor, hidden_F: Tensor) -> Tensor:
    down = block.feed_forward.down
    return x_M + (down.weight.float() * hidden_F).sum(-1) * _scale(down) + _bias(down)


def _head(model: LanguageModel, x_M: Tensor) -> Tensor:
    return _normed_product(model.norm, model.embedding if model.head is None else model.head, x_M)


def _normed_product(
    norm: Norm, layer: nn.Module, x_I: Tensor, shape: tuple[int, ...] = (-1,), chosen: Any = ...
) -> Tensor:
    """Some outputs of `layer(norm(x))`: those that are `chosen` of all, in a shape."""
    weight: Tensor = layer.weight.view(*shape, len(x_I))[chosen]  # type: ignore[operator]
    sums = (weight.float() * (x_I * norm.weight.float())).sum(-1)
    squares = x_I.square().expand(weight.shape).mean(-1)
    scale, added = _scale(layer, shape, chosen), _bias(layer, shape, chosen)
    if isinstance(norm, LayerNorm):
        mean = x_I.expand(weight.shape).mean(-1)
        sums = sums - mean * (weight.float() * norm.weight.float()).sum(-1)
        squares = squares - mean.square()
        added = added + (weight.float() * norm.bias.float()).sum(-1) * scale
    return sums * scale * _inverse_size(norm, squares) + added


def _scale(layer: nn.Module, shape: tuple[int, ...] = (-1,), chosen: Any = ...) -> Tensor | float:
    """By what sums of int8 weights are multiplied."""
    scale_O: Tensor | None = getattr(layer, "scale_O", None)
    return 1.0 if scale_O is None else scale_O.view(shape)[chosen]


def _bias(layer: nn.Module, shape: tuple[int, ...] = (-1,), chosen: Any = ...) -> Tensor | float:
    bias_O: Tensor | None = getattr(layer, "bias", None)
    return 0.0 if bias_O is None else bias_O.float().view(shape)[chosen]


def _inverse_size(norm: nn.Module, squares: Any) -> Tensor | float:
    """By what a norm multiplies besides its weight, given mean squares; 1 where there is no norm."""
    return (squares + norm.eps).rsqrt() if isinstance(norm, RMSNorm | LayerNorm) else 1.0


def _rotated(norm: nn.Module, parts: Parts, rotary: RotaryPositions | None, cache: KVCache) -> Parts:
    """The parts of heads, (H, E), times the weights of their norm, and rotated to the token's position."""
    if isinstance(norm, RMSNorm):
        parts = [part * weight for part, weight in zip(parts, norm.weight.float().chunk(len(parts)), strict=True)]
    if rotary is None:
        return parts
    angles = rotary(1, cache.lengths_B[:, None])
    first, second = parts
    cos, sin = (table.flatten()[: first.size(-1)].float() for table in (angles.cos, angles.sin))
    return [first * cos - second * sin, second * cos + first * sin]
