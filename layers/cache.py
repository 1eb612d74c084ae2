"""The key-value cache: the keys and values of earlier tokens, so that a step computes those of the new one only.

It is allocated once and written by index, at positions that stand in a tensor: a step over it has fixed shapes and
addresses, as a compiled step or a captured graph wants them. How many tokens each sequence holds is known on the host
as well, so that nothing ever has to be asked of the device.

The sequences of a batch may differ in length. New tokens are padded at their end; padding is written into a spare slot
and moves no length, so that every later token stands where it would stand alone, and attention never sees padding.

Shapes: L layers, B batch, T new tokens of a sequence, S slots of a sequence, H key-value heads, D head size, N = B H S
rows of one layer's memory, and in `CachePositions` the N = B H T that are written.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class CachePositions(NamedTuple):
    """Where the new tokens of one call stand in the cache; the same for all layers.

    Attributes:
        positions_BT: Positions in their sequences.
        slot_mapping_N: The row of a layer's memory that takes the key and the value of each token and head.
        slots: The number S of slots that attention looks at.
        causal: Whether the new tokens are the only ones, and each sees those before it.
        mask_BTS: Otherwise, which slots each token sees; None where each sees all S.
    """

    positions_BT: Tensor
    slot_mapping_N: Tensor
    slots: int
    causal: bool
    mask_BTS: Tensor | None

    def seen_by_last(self) -> "CachePositions":
        """The same, where only the last of the new tokens looks: it sees all of them."""
        return self._replace(causal=False, mask_BTS=None if self.mask_BTS is None else self.mask_BTS[:, -1:])


class LayerCache:
    """Keys and values of one attention layer. Gradients do not pass through it.

    Args:
        keys_ND, values_ND: A row for each slot of each head of each sequence, and a spare one for padding.
        batch_size: Number of sequences B.
        num_kv_heads: Key-value heads H.
    """

    def __init__(self, keys_ND: Tensor, values_ND: Tensor, batch_size: int, num_kv_heads: int) -> None:
        self.rows = keys_ND, values_ND
        self._shape = batch_size, num_kv_heads, -1, keys_ND.size(1)

    @property
    def keys_BHSD(self) -> Tensor:
        """The keys in all slots."""
        return self.rows[0][:-1].view(self._shape)

    @property
    def values_BHSD(self) -> Tensor:
        """The values in all slots."""
        return self.rows[1][:-1].view(self._shape)

    def store(self, keys_BHTD: Tensor, values_BHTD: Tensor, cache_positions: CachePositions) -> None:
        """Write the keys and values of new tokens."""
        for rows_ND, new_BHTD in zip(self.rows, (keys_BHTD, values_BHTD), strict=True):
            rows_ND.index_copy_(0, cache_positions.slot_mapping_N, new_BHTD.flatten(0, 2).to(rows_ND.dtype))

    def read(self, slots: int) -> tuple[Tensor, Tensor]:
        """Keys and values in the first slots, of shape (B, H, S, D)."""
        return self.keys_BHSD[:, :, :slots], self.values_BHSD[:, :, :slots]


class KVCache:
    """Keys and values of all layers: 2 L (B H S + 1) D elements.

    Each layer has tensors of its own. What shares memory with others, torch.compile can hardly take for an input.

    Args:
        num_layers: Number of attention layers L.
        batch_size: Number of sequences B.
        num_kv_heads: Key-value heads H.
        max_len: Slots S of a sequence: its tokens at most.
        head_size: Head size D.
        device, dtype: Of the stored keys and values.

    Attributes:
        lengths: Tokens that each sequence holds.
        lengths_B: The same on the device.
        layers: One `LayerCache` for each layer.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch_size: int = 1,
        num_kv_heads: int,
        max_len: int,
        head_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.batch_size, self.max_len, self._num_kv_heads = batch_size, max_len, num_kv_heads
        self._spare_row = batch_size * num_kv_heads * max_len

        def rows() -> Tensor:
            return torch.zeros(self._spare_row + 1, head_size, device=device, dtype=dtype)

        self.layers = [LayerCache(rows(), rows(), batch_size, num_kv_heads) for _ in range(num_layers)]
        self.lengths = [0] * batch_size
        self.lengths_B = torch.zeros(batch_size, dtype=torch.int64, device=device)

    @property
    def bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(rows_ND.nbytes for layer in self.layers for rows_ND in layer.rows)

    @property
    def dtype(self) -> torch.dtype:
        """Of the keys and values."""
        return self.layers[0].rows[0].dtype

    def extend(self, new: int, counts: Sequence[int] | None = None) -> CachePositions:
        """Make room for new tokens at the end of each sequence.

        Args:
            new: Tokens T of each sequence, padding included.
            counts: How many of them are tokens, for each sequence, at its beginning; None for all.

        Returns:
            Where they stand.

        Raises:
            ValueError: They do not fit, or a count is none of 0 to T; nothing has changed then.
        """
        if counts is not None and not 0 <= min(counts) <= max(counts) <= new:
            raise ValueError(f"expected 0 to {new} tokens of each sequence, got {list(counts)}")
        fresh, after = max(self.lengths) == 0, self._after(new, counts)
        longest = max(after)
        sees_all = new == 1 and min(after) == longest
        cache_positions = self.next_positions(new, None if fresh or sees_all else longest)
        cache_positions = cache_positions._replace(slots=new if fresh else longest, causal=fresh)
        if counts is not None and min(counts) < new:
            counts_B = torch.tensor(counts, device=self.lengths_B.device)
            padding_BT = torch.arange(new, device=self.lengths_B.device) >= counts_B[:, None]
            cache_positions = cache_positions._replace(
                positions_BT=cache_positions.positions_BT.masked_fill(padding_BT, 0),
                slot_mapping_N=cache_positions.slot_mapping_N.masked_fill(self._for_heads(padding_BT), self._spare_row),
            )
            self.lengths_B += counts_B
        else:
            self.lengths_B += new
        self.lengths = after
        return cache_positions

    def check_room(self, new: int) -> None:
        """Raise a `ValueError` if so many new tokens of each sequence do not fit."""
        self._after(new, None)

    def advance(self, new: int) -> None:
        """Count new tokens of each sequence that are written where `next_positions` says.

        Raises:
            ValueError: They do not fit.
        """
        self.lengths = self._after(new, None)
        self.lengths_B += new

    def _after(self, new: int, counts: Sequence[int] | None) -> list[int]:
        added = [new] * self.batch_size if counts is None else counts
        after = [length + count for length, count in zip(self.lengths, added, strict=True)]
        if max(after) > self.max_len:
            raise ValueError(f"the cache holds {self.max_len} tokens of a sequence, {max(after)} were asked for")
        return after

    def next_positions(self, new: int, masked: int | None) -> CachePositions:
        """Where the next tokens of each sequence stand, computed on the device alone, without a change or a check.

        Args:
            new: Tokens T of each sequence.
            masked: Look at so many slots, with a mask of those that each token sees; None for no mask.
        """
        device, slots = self.lengths_B.device, masked or self.max_len
        positions_BT = self.lengths_B[:, None] + torch.arange(new, device=device)
        first_BH1 = self.max_len * torch.arange(self.batch_size * self._num_kv_heads, device=device)[:, None]
        slot_mapping_N = (first_BH1 + self._for_heads(positions_BT).view(len(first_BH1), new)).flatten()
        mask_BTS = None if masked is None else torch.arange(slots, device=device) <= positions_BT[..., None]
        return CachePositions(positions_BT, slot_mapping_N, slots, False, mask_BTS)

    def _for_heads(self, values_BT: Tensor) -> Tensor:
        """Repeat what belongs to a token for its heads: from (B, T) to (B H T,)."""
        return values_BT[:, None].expand(-1, self._num_kv_heads, -1).flatten()

    def rewind(self, tokens: int) -> None:
        """Forget the last tokens of each sequence.

        Raises:
            ValueError: A sequence has fewer.
        """
        if not 0 <= tokens <= min(self.lengths):
            raise ValueError(f"cannot take back {tokens} tokens of a sequence that holds {min(self.lengths)}")
        self.lengths = [length - tokens for length in self.lengths]
        self.lengths_B -= tokens

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Forget all tokens of some sequences, or of all; the memory stays allocated."""
        for row in range(self.batch_size) if rows is None else rows:
            self.lengths[row] = 0
            self.lengths_B[row] = 0

    def reorder(self, rows: Sequence[int]) -> None:
        """Replace each sequence b by a copy of sequence `rows[b]`, as beam search does.

        Raises:
            ValueError: There are more or fewer rows than sequences.
        """
        if len(rows) != self.batch_size:
            raise ValueError(f"expected {self.batch_size} rows, got {len(rows)}")
        rows_B = torch.tensor(rows, device=self.lengths_B.device)
        longest = max(self.lengths)
        for layer in self.layers:
            for stored_BHSD in layer.read(longest):
                stored_BHSD.copy_(stored_BHSD[rows_B])
        self.lengths = [self.lengths[row] for row in rows]
        self.lengths_B.copy_(self.lengths_B[rows_B])

    def fill_from(self, other: "KVCache") -> None:
        """Take over the tokens of another cache of the same layers.

        Args:
            other: A cache of as many sequences, or of one n-th of them: each of its sequences is then the beginning of
                n here, that stand beside each other.

        Raises:
            ValueError: It holds other sequences, or longer ones than fit.
        """
        longest = max(other.lengths)
        copies, rest = divmod(self.batch_size, other.batch_size)
        if rest or longest > self.max_len:
            raise ValueError(
                f"{other.batch_size} sequences of up to {longest} tokens do not fit into a cache of "
                f"{self.batch_size} times {self.max_len}"
            )
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            for to_BHSD, from_BHSD in zip(mine.read(longest), theirs.read(longest), strict=True):
                to_BHSD.view(other.batch_size, copies, *to_BHSD.shape[1:]).copy_(from_BHSD[:, None])
        self.lengths = [length for length in other.lengths for _ in range(copies)]
        self.lengths_B.copy_(other.lengths_B.repeat_interleave(copies))
