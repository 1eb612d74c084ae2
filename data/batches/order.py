"""Which training samples make a batch: a pure function of the seed and of the position in the run.

The order of an epoch is a keyed bijection, not a list: where a sample stands is computed when it is asked for, so that
10^10 samples take no more memory or time than ten.

Shapes: N indices, or what stands there.
"""

import hashlib
from collections.abc import Iterator
from math import isqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ORDER = 2
"""Version of what `epoch_samples` and `drawn` give, recorded with each run; 1 was a list that torch drew."""
ROUNDS = 24
"""Fewer show where samples are few: of 6, the orders are 7 % from equally likely after 8, below 0.1 % after 24."""
HASH_BITS = np.uint64(32)
MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Of the generator splitmix64."""


def epoch_samples(first: int, count: int, *, num_samples: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Which samples stand at `first` to `first + count` of the endless stream of shuffled epochs.

    Args:
        first: Position in the stream, counted from 0 over all epochs.
        count: Number of samples.
        num_samples: Samples in one epoch.
        seed: Epoch e is shuffled by (seed, e).

    Yields:
        For each epoch that is touched, its number and the indices of its samples.
    """
    end = first + count
    while first < end:
        epoch, position = divmod(first, num_samples)
        length = min(end - first, num_samples - position)
        indices_N = np.arange(position, position + length, dtype=np.uint64)
        yield epoch, torch.from_numpy(permuted(indices_N, num_samples, _hashed(seed, epoch, "permutation")))
        first += length


def drawn(below: int, seed: int, epoch: int, purpose: str) -> int:
    """A number of 0 to `below` - 1 for a purpose in an epoch, the same with every version of torch."""
    return int.from_bytes(_hashed(seed, epoch, purpose), "little") % below


def permuted(indices_N: NDArray[np.uint64], size: int, key: bytes) -> NDArray[np.int64]:
    """Where the permutation of 0 to `size` - 1 that belongs to a key of 8 ROUNDS bytes sends indices, each on its own.

    A Feistel network over the cells of a rectangle of at least `size` cells, as small as it gets; a cell beyond `size`
    is sent on until it is within (Black and Rogaway 2002, "Ciphers with arbitrary finite domains", sections 3 and 4).
    """
    # Turning an even number of cells by one is an odd permutation: else some sizes would never see half of all orders.
    rows = 2 * (isqrt(size - 1) // 2 + 1)
    shape = np.uint64(rows), np.uint64(-(-size // rows))
    round_keys = np.frombuffer(key, dtype="<u8")
    cells_N = _network(indices_N, shape, round_keys)
    while (beyond_N := cells_N >= size).any():
        cells_N[beyond_N] = _network(cells_N[beyond_N], shape, round_keys)
    return cells_N.astype(np.int64)


def _network(
    cells_N: NDArray[np.uint64], shape: tuple[np.uint64, np.uint64], round_keys: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """An even number of rounds: each turns every column of the rectangle by an amount of its own, and then lies on it.

    So the next one turns every row.
    """
    rows, columns = shape
    row_N, column_N = np.divmod(cells_N, columns)
    for round_key in round_keys:
        row_N, column_N = column_N, (row_N + _amounts(column_N, round_key, rows)) % rows
        rows, columns = columns, rows
    return row_N * columns + column_N


def _amounts(values_N: NDArray[np.uint64], key: np.uint64, below: np.uint64) -> NDArray[np.uint64]:
    """A hash of each value, from 0 to `below` - 1."""
    hashes_N = (values_N ^ key) * MULTIPLIERS[0]
    hashes_N ^= hashes_N >> HASH_BITS
    hashes_N *= MULTIPLIERS[1]
    return (hashes_N >> HASH_BITS) * below >> HASH_BITS


def _hashed(seed: int, epoch: int, purpose: str) -> bytes:
    return hashlib.shake_256(repr((seed, epoch, purpose)).encode()).digest(8 * ROUNDS)
