"""What a model must have to be decoded from: the models of `gpt` and `seq2seq` do, and nothing here imports them.

Shapes: B batch, T tokens, S source tokens, M model size, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from decoding.int8 import Int8Linear
from decoding.merging import Rows
from layers import CachePositions, KVCache, LayerNorm, Memory, RMSNorm, RotaryAngles, RotaryPositions
from layers.attention import MultiHeadAttention
from layers.block import Block
from layers.dropout import Dropout
from layers.feed_forward import GELU, SwiGLU
from layers.norm import Norm
from layers.positions import LearnedPositions, SinusoidalPositions

_KNOWN = (
    *(Block, MultiHeadAttention, SwiGLU, GELU, RMSNorm, LayerNorm, Int8Linear, Rows),
    *(LearnedPositions, RotaryPositions, SinusoidalPositions),
    *(nn.Linear, nn.Embedding, nn.Identity, Dropout),
)


class Shape(Protocol):
    """What is read of a model's configuration."""

    @property
    def max_len(self) -> int:
        """Tokens of the context."""


class CachedModel(Protocol):
    """What any decoder has. `head` is None where the embedding serves as one."""

    vocab_size: int
    embedding: nn.Embedding
    positions: nn.Module | None
    rotary: RotaryPositions | None
    norm: Norm
    embedding_scale: float
    head: nn.Linear | None

    @property
    def config(self) -> Shape:
        """Its shape."""

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The blocks that a new token passes."""

    def logits(self, hidden_BTM: Tensor) -> Tensor:
        """Logits, (B, T, V), of hidden states."""

    def new_cache(self, batch_size: int = 1, max_len: int | None = None) -> KVCache:
        """An empty cache."""


class LanguageModel(CachedModel, Protocol):
    """Continues texts."""

    def __call__(self, tokens_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits, (B, T, V)."""

    def hidden_states(
        self, tokens_BT: Tensor, cache: KVCache | None, cache_positions: CachePositions | None, *, last_only: bool
    ) -> Tensor:
        """All of it but the head, (B, T, M); with `last_only`, (B, 1, M)."""

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor | None) -> tuple[Tensor, RotaryAngles | None]:
        """What the first block takes."""


class TranslationModel(CachedModel, Protocol):
    """Writes the target of a source, from `start_token` to `end_token`."""

    pad_token: int
    start_token: int
    end_token: int

    def encode_sources(self, sources: Sequence[Sequence[int]]) -> Memory:
        """Read sources of different lengths, without special tokens."""

    def cache_cross_attention(self, memory: Memory) -> Memory:
        """The same memory with the keys and values of cross-attention, computed once."""

    def hidden_states(self, target_BT: Tensor, memory: Memory, cache: KVCache | None = None) -> Tensor:
        """All of the decoder but the head, (B, T, M)."""


def decoder_parts(model: CachedModel) -> list[nn.Module]:
    """What a new token passes."""
    parts = (model.embedding, model.positions, model.rotary, *model.decoder_layers, model.norm, model.head)
    return [part for part in parts if part is not None]


def unknown_parts(model: CachedModel) -> set[str]:
    """The classes in a decoder that a step other than its own does not know: a subclass may do anything.

    The model's very class is known where it says `has_native_step`.
    """
    modules = (module for part in decoder_parts(model) for module in part.modules())
    unknown = {type(module).__name__ for module in modules if type(module) not in _KNOWN}
    return unknown | (set() if vars(type(model)).get("has_native_step") else {type(model).__name__})
