"""An exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.shards import local
from training.trained import kept


class WeightAverage:
    """Follows a model's weights: after step s, `average += (1 - d) (weights - average)`.

    `d` is the smaller of `decay` and `(1 + s) / (10 + s)`, so that the average forgets its start quickly (the rule of
    TensorFlow's `ExponentialMovingAverage` with `num_updates`).

    Args:
        model: The model; the average starts at its weights, and is in shards where it is. It is of what a checkpoint
            holds: of a model with an adapter, of that alone.
        decay: The share of the average that a late step keeps, between 0 and 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        names = kept(model)
        weights = {name: parameter.detach() for name, parameter in model.named_parameters() if name in names}
        self._weights = [local(weight) for weight in weights.values()]
        self.tensors = {name: weight.clone() for name, weight in weights.items()}
        self._averages = [local(tensor) for tensor in self.tensors.values()]

    @torch.no_grad()
    def update(self, step: int, unchanged: Tensor) -> None:
        """Take in the weights of a step, counted from 1, unless `unchanged` is 1: a tensor, so that nobody waits."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        shares = [((1 - unchanged) * share).to(self._weights[0].dtype)] * len(self._weights)
        torch._foreach_lerp_(self._averages, self._weights, shares)

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """While entered, the model computes with the average; its own weights come back to the last bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, average in zip(self._weights, self._averages, strict=True):
            own = weight.clone()
            weight.copy_(average)
            average.copy_(own)
