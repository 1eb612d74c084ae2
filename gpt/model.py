"""The decoder-only transformer.

Choices: pre-norm blocks, optional query-key norm, grouped key-value heads, three kinds of positions, head tied to the
embedding or not; RMSNorm, SwiGLU and no biases unless the configuration asks for what other models have. The number of
parameters, with head size D, M / H unless it is given, is

    V M + L (2 M H D + 2 M K D + 3 M F + 2 M) + M        embedding, blocks, final norm
    + V M unless tied                                     head
    + 2 L D with query-key norm                           query and key norms
    + max_len M with learned positions                    positions
    + (2 L + 1) M with LayerNorm                          biases of norms
    - L M F with GELU                                     two matrices in place of three
    + L (H D + 2 K D + M) with `attention_bias`
    + L (2 F + M) with `feed_forward_bias`                L (F + M) with GELU

Shapes: B batch, T tokens, M model size, V vocabulary, and in the formula L layers, H heads, K key-value heads, F
feed-forward size.
"""

from torch import Tensor, nn

from gpt.config import ModelConfig
from layers import CachePositions, KVCache, Transformer, mask_of_documents


class GPT(Transformer):
    """Predicts each next token from those before it.

    Args:
        config: The shape of the model.
        vocab_size: Number of different tokens V.
    """

    config: ModelConfig
    has_native_step = True

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.blocks = self.new_blocks()
        self.add_head()

    def forward(
        self, tokens_BT: Tensor, cache: KVCache | Tensor | None = None, cache_positions: CachePositions | None = None
    ) -> Tensor:
        """Predict the token after each of `tokens_BT`.

        Args:
            tokens_BT: Token ids, (B, T).
            cache: What earlier calls computed of the same sequences; the tokens continue there. In a batch whose
                windows hold documents side by side, in its place: the position of each token in its document, (B, T).
            cache_positions: Where the tokens stand in the cache; None for `cache.extend(T)`.

        Returns:
            Logits of shape (B, T, V).

        Raises:
            ValueError: The sequences are longer than `max_len` or than the cache.
        """
        if isinstance(cache, Tensor):
            return self.logits(self.hidden_states(tokens_BT, positions_BT=cache))
        hidden_BTM = self.hidden_states(tokens_BT, cache, cache_positions)
        return self.logits(hidden_BTM)

    def normed_states(self, tokens_BT: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """All of `forward` but the last product, without a cache: what `head_weight` is multiplied by, (B, T, M)."""
        return self.norm(self.hidden_states(tokens_BT, positions_BT=positions_BT))

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
        positions_BT: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """All of `forward` but the head: what the model makes of each token, of shape (B, T, M).

        With `positions_BT`, of documents side by side, which do not see each other; not with a cache.
        With `last_only`, what it makes of the last, of shape (B, 1, M): the last block computes nothing else.
        """
        if cache is not None and cache_positions is None:
            cache_positions = cache.extend(tokens_BT.size(1))
        mask_BTT = None if positions_BT is None else mask_of_documents(positions_BT)
        if cache_positions is not None:
            positions_BT = cache_positions.positions_BT
        x_BTM, rotary = self.embed(tokens_BT, positions_BT)
        for index, block in enumerate(self.blocks):
            own = None if cache is None else cache.layers[index]
            is_last = index == len(self.blocks) - 1
            x_BTM = block(
                x_BTM,
                rotary,
                causal=mask_BTT is None,
                mask_BTS=mask_BTT,
                cache=own,
                cache_positions=cache_positions,
                last_only=last_only and is_last,
            )
        return x_BTM

    def flops_per_token(self) -> float:
        """Floating point operations of one token's forward and backward pass in training on whole contexts.

        Six per weight of a matrix (four where it is not trained) and twelve per layer, column of a head and token of
        the context (Chowdhery et al. 2022, "PaLM", appendix B), which counts attention as if it saw all of the context.
        """
        linears = [module for module in self.modules() if isinstance(module, nn.Linear)]
        matrices: list[Tensor] = [
            parameter for linear in linears for parameter in linear.parameters() if parameter.ndim == 2
        ]
        if self.head is None:
            matrices.append(self.embedding.weight)
        weights = sum((6.0 if matrix.requires_grad else 4.0) * matrix.numel() for matrix in matrices)
        columns = self.config.num_layers * self.config.num_heads * self.config.head_size
        return weights + 12.0 * columns * self.config.max_len
