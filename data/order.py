"""Which training samples make a batch: a pure function of the seed and of the place in the run."""

from functools import lru_cache

import torch
from torch import Tensor

from training.seeds import generator


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_samples: int) -> Tensor:
    return torch.randperm(num_samples, generator=generator(seed, epoch, "permutation"))


def epoch_samples(first: int, count: int, *, num_samples: int, seed: int) -> list[tuple[int, Tensor]]:
    """Which samples stand at `first` to `first + count` of the endless stream of shuffled epochs.

    Args:
        first: Place in the stream, counted from 0 over all epochs.
        count: Number of samples.
        num_samples: Samples in one epoch.
        seed: Epoch e is shuffled by (seed, e).

    Returns:
        For each epoch that is touched, its number and the indices of its samples.
    """
    parts, end = [], first + count
    while first < end:
        epoch, place = divmod(first, num_samples)
        length = min(end - first, num_samples - place)
        parts.append((epoch, _permutation(seed, epoch, num_samples)[place : place + length]))
        first += length
    return parts
