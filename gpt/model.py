"""The decoder-only transformer.

Choices: pre-norm blocks with RMSNorm, no biases, SwiGLU, optional query-key norm, grouped key-value heads, three kinds
of positions, head tied to the embedding or not. The number of parameters, with head size D = M / H, is

    V M + L (2 M M + 2 M K D + 3 M F + 2 M) + M          embedding, blocks, final norm
    + V M unless tied                                     head
    + 2 L D with query-key norm                           query and key norms
    + max_len M with learned positions                    positions

Shapes: B batch, T tokens, M model size, V vocabulary, and in the formula L layers, H heads, K key-value heads, F
feed-forward size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.config import ModelConfig
from layers import Block, CachePositions, KVCache, RMSNorm, RotaryAngles, build_positions, init_weights


class GPT(nn.Module):
    """Predicts each next token from those before it.

    Args:
        config: The shape of the model.
        vocab_size: Number of different tokens V.
    """

    has_native_step = True

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.positions, self.rotary = build_positions(
            config.positions,
            max_len=config.max_len,
            d_model=config.d_model,
            head_size=config.head_size,
        )
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(
                d_model=config.d_model,
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                d_ff=config.d_ff,
                dropout=config.dropout,
                qk_norm=config.qk_norm,
            )
            for _ in range(config.num_layers)
        )
        self.norm = RMSNorm(config.d_model)
        self.head = None if config.tie_embeddings else nn.Linear(config.d_model, vocab_size, bias=False)

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, on the CPU, from `generator`; see `layers.init_weights`."""
        init_weights(self, embedding=self.embedding, head=self.head, generator=generator)

    def forward(
        self, tokens_BT: Tensor, cache: KVCache | None = None, cache_positions: CachePositions | None = None
    ) -> Tensor:
        """Predict the token after each of `tokens_BT`.

        Args:
            tokens_BT: Token ids, (B, T).
            cache: What earlier calls computed of the same sequences; the tokens continue there.
            cache_positions: Where the tokens stand in the cache; None for `cache.extend(T)`.

        Returns:
            Logits of shape (B, T, V).

        Raises:
            ValueError: The sequences are longer than `max_len` or than the cache.
        """
        hidden_BTM = self.hidden_states(tokens_BT, cache, cache_positions)
        return self.logits(hidden_BTM)

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """All blocks."""
        return self.blocks

    def hidden_states(
        self,
        tokens_BT: Tensor,
        cache: KVCache | None = None,
        cache_positions: CachePositions | None = None,
        *,
        last_only: bool = False,
    ) -> Tensor:
        """All of `forward` but the head: what the model makes of each token, of shape (B, T, M).

        With `last_only`, what it makes of the last, of shape (B, 1, M): the last block computes nothing else.
        """
        if tokens_BT.size(1) > self.config.max_len:
            raise ValueError(f"expected at most {self.config.max_len} tokens, got {tokens_BT.size(1)}")
        if cache is not None and cache_positions is None:
            cache_positions = cache.extend(tokens_BT.size(1))
        x_BTM, rotary = self.embed(tokens_BT, cache_positions)
        for index, block in enumerate(self.blocks):
            own = None if cache is None else cache.layers[index]
            is_last = index == len(self.blocks) - 1
            x_BTM = block(
                x_BTM, rotary, causal=True, cache=own, cache_positions=cache_positions, last_only=last_only and is_last
            )
        return x_BTM

    def embed(self, tokens_BT: Tensor, cache_positions: CachePositions | None) -> tuple[Tensor, RotaryAngles | None]:
        """What the first block takes: embeddings, (B, T, M), and how queries and keys turn."""
        positions_BT = None if cache_positions is None else cache_positions.positions_BT
        x_BTM = self.embedding(tokens_BT) * math.sqrt(self.config.d_model)
        if self.positions is not None:
            x_BTM = self.positions(x_BTM, positions_BT)
        rotary = None if self.rotary is None else self.rotary(tokens_BT.size(1), positions_BT)
        return self.dropout(x_BTM), rotary

    def logits(self, hidden_BTM: Tensor) -> Tensor:
        """Logits of shape (B, T, V) from what `hidden_states` returned."""
        normed_BTM = self.norm(hidden_BTM)
        return F.linear(normed_BTM, self.embedding.weight) if self.head is None else self.head(normed_BTM)

    def flops_per_token(self) -> float:
        """Floating point operations of one token's forward and backward pass in training on whole contexts.

        Six per weight of a matrix and twelve per layer, width and token of the context (Chowdhery et al. 2022, "PaLM",
        appendix B), which counts attention as if it saw all of the context.
        """
        weights = sum(module.weight.numel() for module in self.modules() if isinstance(module, nn.Linear))
        if self.head is None:
            weights += self.embedding.weight.numel()
        return 6.0 * weights + 12.0 * self.config.num_layers * self.config.d_model * self.config.max_len

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
