"""The block that both models repeat.

Shapes: B batch, T tokens, S tokens of another sequence, M model size.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from layers.attention import MultiHeadAttention
from layers.cache import CachePositions, KVCache, LayerCache
from layers.dropout import Dropout
from layers.feed_forward import build_feed_forward
from layers.norm import Norm, build_norm
from layers.positions import RotaryAngles


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Other sequences, which cross-attention looks at.

    Attributes:
        states_BSM: Their tokens.
        mask_B1S: False for padding; None where there is none.
        rotary: Angles of the keys; None for no rotation.
        cache: Keys and values of cross-attention in all blocks, computed once; None to compute them at each step.
    """

    states_BSM: Tensor
    mask_B1S: Tensor
    rotary: RotaryAngles | None
    cache: KVCache | None = None


class Block(nn.Module):
    """`x + attention(norm(x))`, then `x + feed_forward(norm(x))`; with `cross`, between them
    `x + cross_attention(norm(x), memory)`.

    Args:
        shape: The fields of `training.config.shape.TransformerConfig`.
        cross: Whether the block has cross-attention.
    """

    def __init__(self, shape: Any, *, cross: bool = False) -> None:
        super().__init__()

        def attention() -> MultiHeadAttention:
            return MultiHeadAttention(
                d_model=shape.d_model,
                num_heads=shape.num_heads,
                num_kv_heads=shape.num_kv_heads,
                dropout=shape.dropout,
                qk_norm=shape.qk_norm,
                head_size=shape.head_size,
                bias=shape.attention_bias,
                norm_eps=shape.norm_eps,
            )

        def norm() -> Norm:
            return build_norm(shape.norm, shape.d_model, shape.norm_eps)

        self.attention_norm = norm()
        self.attention = attention()
        self.cross_attention_norm = norm() if cross else None
        self.cross_attention = attention() if cross else None
        self.feed_forward_norm = norm()
        self.feed_forward = build_feed_forward(shape.activation, shape.d_model, shape.d_ff, shape.feed_forward_bias)
        self.dropout = Dropout(shape.dropout)

    def forward(
        self,
        x_BTM: Tensor,
        rotary: RotaryAngles | None,
        *,
        causal: bool = False,
        mask_BTS: Tensor | None = None,
        cache: LayerCache | None = None,
        cache_positions: CachePositions | None = None,
        memory: Memory | None = None,
        memory_cache: LayerCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Map (B, T, M) to (B, T, M), or with `last_only` to (B, 1, M).

        Args:
            x_BTM: The tokens.
            rotary: Angles of queries and keys; None for no rotation.
            causal, mask_BTS, cache, cache_positions: As in `MultiHeadAttention`, of the tokens among themselves.
            memory: What cross-attention looks at.
            memory_cache: This block's part of `memory.cache`.
            last_only: Whether only the last of the tokens is wanted; all of them join the cache, if there is one.

        Raises:
            ValueError: There is cross-attention without a memory, or a memory without cross-attention.
        """
        if (memory is None) != (self.cross_attention is None):
            raise ValueError("a block takes a memory where it has cross-attention, and only there")
        normed_BTM, others_BSM, others_rotary = self.attention_norm(x_BTM), None, rotary
        if last_only:
            others_BSM, normed_BTM, x_BTM = normed_BTM, normed_BTM[:, -1:], x_BTM[:, -1:]
            rotary = None if rotary is None else rotary.last()
            cache_positions = None if cache_positions is None else cache_positions.seen_by_last()
        attended_BTM = self.attention(
            normed_BTM,
            others_BSM,
            causal=causal,
            mask_BTS=mask_BTS,
            rotary=rotary,
            memory_rotary=others_rotary,
            cache=cache,
            cache_positions=cache_positions,
        )
        x_BTM = x_BTM + self.dropout(attended_BTM)
        if memory is not None:
            x_BTM = x_BTM + self.dropout(self._attend_to_memory(x_BTM, rotary, memory, memory_cache), site=1)
        return x_BTM + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTM)), site=2)

    def _attend_to_memory(
        self, x_BTM: Tensor, rotary: RotaryAngles | None, memory: Memory, cache: LayerCache | None
    ) -> Tensor:
        assert self.cross_attention is not None
        assert self.cross_attention_norm is not None
        return self.cross_attention(
            self.cross_attention_norm(x_BTM),
            memory.states_BSM,
            mask_BTS=memory.mask_B1S,
            rotary=None if memory.rotary is None else rotary,
            memory_rotary=memory.rotary,
            cache=cache,
        )
