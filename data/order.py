"""Which training samples make a batch: a pure function of the seed and of the position in the run."""

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from training.seeds import generator


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_samples: int) -> Tensor:
    return torch.randperm(num_samples, generator=generator(seed, epoch, "permutation"))


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
        yield epoch, _permutation(seed, epoch, num_samples)[position : position + length]
        first += length
