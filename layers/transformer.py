"""What both models have around their blocks: embedding, positions, a last norm, a head, a cache and first weights.

Shapes: B batch, T tokens, M model size, V vocabulary.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.attention import MultiHeadAttention
from layers.block import Block
from layers.cache import KVCache
from layers.dropout import Dropout, set_sample_seeds
from layers.feed_forward import FeedForward
from layers.norm import LayerNorm, Norm, RMSNorm, build_norm
from layers.positions import LearnedPositions, RotaryAngles, build_positions


class Transformer(nn.Module):
    """The base of a model. A subclass registers its blocks, then calls `add_head`.

    Args:
        config: The shape, with the fields of `training.config.shape.TransformerConfig` and `num_layers`.
        vocab_size: Number of different tokens V.
    """

    config: Any
    norm: Norm
    head: nn.Linear | None

    def __init__(self, config: Any, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.embedding_scale: float = config.embedding_scale or math.sqrt(config.d_model)
        self.positions, self.rotary = build_positions(
            config.positions,
            max_len=config.max_len,
            d_model=config.d_model,
            head_size=config.head_size,
            theta=config.rope_theta,
            scaling=config.rope_scaling,
        )
        self.dropout = Dropout(config.dropout)

    def new_blocks(self, *, cross: bool = False) -> nn.ModuleList:
        """As many blocks as the configuration has layers."""
        return nn.ModuleList(Block(self.config, cross=cross) for _ in range(self.config.num_layers))

    def add_head(self) -> None:
        """Register the last norm, and a head unless the embedding is one. Weights are drawn in this order."""
        self.norm = build_norm(self.config.norm, self.config.d_model, self.config.norm_eps)
        tied = self.config.tie_embeddings
        self.head = None if tied else nn.Linear(self.config.d_model, self.vocab_size, bias=False)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, on the CPU, from `generator`.

        - Embeddings: normal, deviation 1 / sqrt(M). They are multiplied by sqrt(M) (Vaswani et al. 2017, section 3.4)
          unless `embedding_scale` says otherwise, so that tokens enter with size 1, next to positions of the same size.
          Learned positions: deviation 0.02.
        - Matrices inside blocks: normal, deviation 1 / sqrt(inputs), which keeps the size of what passes through.
        - Matrices that write to the residual stream: zero, so that every block starts as the identity.
        - Head: zero when it has its own weights: the first loss is then ln V exactly.
        - Norms: one. Biases: zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0.0, module.in_features**-0.5, generator=generator)
            elif isinstance(module, RMSNorm | LayerNorm):
                module.weight.fill_(1.0)
            if isinstance(module, nn.Linear | LayerNorm) and module.bias is not None:
                module.bias.zero_()
        self.embedding.weight.normal_(0.0, self.embedding.embedding_dim**-0.5, generator=generator)
        for module in self.modules():
            if isinstance(module, LearnedPositions):
                module.embedding.weight.normal_(0.0, 0.02, generator=generator)
            elif isinstance(module, MultiHeadAttention):
                module.out.weight.zero_()
            elif isinstance(module, FeedForward):
                module.down.weight.zero_()
        if self.head is not None:
            self.head.weight.zero_()

    def set_sample_seeds(self, seeds_B: Tensor | None) -> None:
        """Let dropout follow from a seed of 64 bits for each sequence of the batch that comes next; None: no longer."""
        set_sample_seeds(self, seeds_B)

    def embed(
        self, tokens_BT: Tensor, positions_BT: Tensor | None, site: int = 0
    ) -> tuple[Tensor, RotaryAngles | None]:
        """What the first block takes: embeddings, (B, T, M), and the rotary angles, at `positions_BT` or from 0 on.

        What is dropped of several inputs of a model differs by their `site`.

        Raises:
            ValueError: The sequences are longer than `max_len`.
        """
        length = tokens_BT.size(1)
        if length > self.config.max_len:
            raise ValueError(f"expected at most {self.config.max_len} tokens, got {length}")
        x_BTM = self.embedding(tokens_BT) * self.embedding_scale
        if self.positions is not None:
            x_BTM = self.positions(x_BTM, positions_BT)
        return self.dropout(x_BTM, site), None if self.rotary is None else self.rotary(length, positions_BT)

    @property
    def head_weight(self) -> Tensor | None:
        """The matrix by which `logits` multiplies, (V, M); None where the head is another layer than its own."""
        if self.head is None:
            return self.embedding.weight
        return self.head.weight if type(self.head) is nn.Linear else None

    def logits(self, hidden_BTM: Tensor) -> Tensor:
        """Logits of shape (B, T, V) from what `hidden_states` returned."""
        normed_BTM = self.norm(hidden_BTM)
        return F.linear(normed_BTM, self.embedding.weight) if self.head is None else self.head(normed_BTM)

    def new_cache(self, batch_size: int = 1, max_len: int | None = None) -> KVCache:
        """A cache for sequences of up to `max_len` tokens (None: the context), on the model's device, in its dtype."""
        config = self.config
        return KVCache(
            num_layers=config.num_layers,
            batch_size=batch_size,
            num_kv_heads=config.kv_heads,
            max_len=min(max_len or config.max_len, config.max_len),
            head_size=config.head_size,
            device=self.embedding.weight.device,
            dtype=self.embedding.weight.dtype,
        )
