"""The encoder-decoder transformer.

The encoder reads the whole source in both directions; the decoder predicts each next token of the target from those
before it (causal self-attention) and from what the encoder made of the source (cross-attention). Blocks are made as the
GPT's are (`gpt/model.py`). Source and target share one embedding (Vaswani et al. 2017, section 3.4).

With rotary positions, cross-attention may know positions as well (`cross_positions`): queries are rotated by their
position in the target, keys by theirs in the source: a head can look at a fixed distance whatever the length, as
copying wants. With `both_ends`, the second half of the heads counts the source from its end, as reversing wants.

Shapes: B batch, S source tokens, T target tokens, P the longer of the two, M model size, V vocabulary,
H key-value heads.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data.pairs.batches import check_source, frame_source, padded
from data.tokenizers.vocabulary import END, PAD, START
from layers import CachePositions, KVCache, Memory, MultiHeadAttention, RotaryAngles, Transformer
from layers.norm import build_norm
from seq2seq.config import ModelConfig
from training.runtime.errors import InputError


class EncoderDecoder(Transformer):
    """Predicts each next token of a target from its source and from the tokens before it.

    Args:
        config: The shape of the model.
        vocab_size: Number of different tokens V, special ones included.
    """

    pad_token, start_token, end_token = PAD, START, END
    config: ModelConfig
    has_native_step = True

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size)
        self.encoder_blocks = self.new_blocks()
        self.encoder_norm = build_norm(config.norm, config.d_model, config.norm_eps)
        self.decoder_blocks = self.new_blocks(cross=True)
        self.add_head()

    def forward(self, source_BS: Tensor, target_BT: Tensor, positions_BP: Tensor | None = None) -> Tensor:
        """Predict the token after each of `target_BT`.

        Args:
            source_BS: Token ids of each source, from start to end, padded with `PAD`.
            target_BT: Token ids of each target, from its start on.
            positions_BP: Places, of which both take the first; None for those from 0 on. See `config.random_positions`.

        Returns:
            Logits of shape (B, T, V).

        Raises:
            ValueError: A sequence is longer than `max_len`.
        """
        return self.logits(
            self.hidden_states(target_BT, self.encode(source_BS, positions_BP), positions_BP=positions_BP)
        )

    def normed_states(self, source_BS: Tensor, target_BT: Tensor, positions_BP: Tensor | None = None) -> Tensor:
        """All of `forward` but the last product: what `head_weight` is multiplied by, (B, T, M)."""
        memory = self.encode(source_BS, positions_BP)
        return self.norm(self.hidden_states(target_BT, memory, positions_BP=positions_BP))

    def encode(self, source_BS: Tensor, positions_BP: Tensor | None = None) -> Memory:
        """Read sources, padded with `PAD`, whose tokens stand at the first of `positions_BP`, or from 0 on."""
        mask_BS = source_BS != PAD
        x_BSM, rotary = self.embed(source_BS, _first(positions_BP, source_BS.size(1)), site=1)
        for block in self.encoder_blocks:
            x_BSM = block(x_BSM, rotary, mask_BTS=mask_BS[:, None])
        return Memory(
            states_BSM=self.encoder_norm(x_BSM),
            mask_B1S=mask_BS[:, None],
            rotary=self._memory_rotary(mask_BS, positions_BP),
        )

    def encode_sources(self, sources: Sequence[Sequence[int]]) -> Memory:
        """Read sources of different lengths, without special tokens.

        Raises:
            InputError: There is none, or one is empty or too long.
        """
        if not sources:
            raise InputError("there is no source: give at least one")
        for number, source in enumerate(sources, start=1):
            check_source(source, self.config.max_len, "the source" if len(sources) == 1 else f"source {number}")
        source_BS = padded([frame_source(source) for source in sources], PAD)
        return self.encode(source_BS.to(self.embedding.weight.device))

    def _memory_rotary(self, mask_BS: Tensor, positions_BP: Tensor | None) -> RotaryAngles | None:
        if self.rotary is None or self.config.crossing == "content":
            return None
        if self.config.crossing == "start":
            return self.rotary(mask_BS.size(1), _first(positions_BP, mask_BS.size(1)))
        from_start_S = torch.arange(mask_BS.size(1), device=mask_BS.device)
        from_end_BS = (mask_BS.sum(1, keepdim=True) - 1 - from_start_S).clamp(min=0)
        half = self.config.kv_heads // 2
        both_BHS = torch.stack((from_start_S.expand_as(from_end_BS), from_end_BS), 1).repeat_interleave(half, 1)
        if positions_BP is not None:
            both_BHS = positions_BP[:, None].expand(-1, both_BHS.size(1), -1).gather(2, both_BHS)
        return self.rotary(mask_BS.size(1), both_BHS)

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The blocks of the decoder."""
        return self.decoder_blocks

    def hidden_states(
        self,
        target_BT: Tensor,
        memory: Memory,
        cache: KVCache | None = None,
        cache_positions: CachePositions | None = None,
        positions_BP: Tensor | None = None,
    ) -> Tensor:
        """All of the decoder but the head, of shape (B, T, M).

        Args:
            target_BT: Token ids.
            memory: Of the sources.
            cache: What earlier calls computed of the same targets; the tokens continue there.
            cache_positions: Where the tokens stand in the cache; None for `cache.extend(T)`.
            positions_BP: Without a cache, positions of which the tokens take the first; None for those from 0 on.
        """
        if cache is not None and cache_positions is None:
            cache_positions = cache.extend(target_BT.size(1))
        positions_BT = (
            _first(positions_BP, target_BT.size(1)) if cache_positions is None else cache_positions.positions_BT
        )
        x_BTM, rotary = self.embed(target_BT, positions_BT)
        for index, block in enumerate(self.decoder_blocks):
            own, of_memory = (None if c is None else c.layers[index] for c in (cache, memory.cache))
            x_BTM = block(
                x_BTM,
                rotary,
                causal=True,
                cache=own,
                cache_positions=cache_positions,
                memory=memory,
                memory_cache=of_memory,
            )
        return x_BTM

    def cache_cross_attention(self, memory: Memory) -> Memory:
        """The same memory with the keys and values of cross-attention in a cache; gradients do not pass through it."""
        states_BSM, counts = memory.states_BSM, memory.mask_B1S.sum((1, 2)).tolist()
        cache = self.new_cache(len(counts), states_BSM.size(1))
        cache_positions = cache.extend(states_BSM.size(1), counts)
        for block, layer in zip(self.decoder_blocks, cache.layers, strict=True):
            crossing = block.get_submodule("cross_attention")
            assert isinstance(crossing, MultiHeadAttention)
            crossing.cache_cross_attention(states_BSM, layer, cache_positions, memory.rotary)
        return Memory(states_BSM=states_BSM, mask_B1S=memory.mask_B1S, rotary=memory.rotary, cache=cache)

    def flops_per_token(self, source_per_target: float) -> float:
        """Floating point operations of one target token's forward and backward pass in training.

        Six per weight of a matrix and token that passes it (Kaplan et al. 2020, "Scaling Laws", section 2.1): the
        encoder's, and the keys and values of cross-attention, see the source's tokens. Attention's own products, small
        at short lengths, are left out.

        Args:
            source_per_target: Source tokens for each target token, in the mean.
        """
        of_source = [m for m in self.encoder_blocks.modules() if isinstance(m, nn.Linear)]
        of_source += [
            getattr(block.cross_attention, name) for block in self.decoder_blocks for name in ("key", "value")
        ]
        counted = {id(linear) for linear in of_source}
        of_target = [m for m in self.modules() if isinstance(m, nn.Linear) and id(m) not in counted]
        weights = _weights(of_target) + source_per_target * _weights(of_source)
        return 6.0 * (weights + (self.embedding.weight.numel() if self.head is None else 0))


def _first(positions_BP: Tensor | None, count: int) -> Tensor | None:
    return None if positions_BP is None else positions_BP[:, :count]


def _weights(linears: Sequence[nn.Module]) -> int:
    return sum(linear.get_parameter("weight").numel() for linear in linears)
