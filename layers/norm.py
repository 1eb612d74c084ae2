"""Normalisation: by the root mean square, or LayerNorm, which torch has."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.native import kernels


class RMSNorm(nn.Module):
    """`y = x / sqrt(mean(x^2) + eps) * weight` over the last dimension (Zhang and Sennrich 2019, equation 4).

    Args:
        size: Length of the last dimension.
        eps: Added to the mean square, so that a zero vector stays finite.
    """

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` of any shape that ends in `size`; the result has its shape.

        Its dtype is that of `x`, or under autocast on a CPU what the product that comes next would turn it into.
        """
        if kernels.serve(x) and x.size(-1) == len(self.weight):
            return kernels.rms_norm(x, self.weight, self.eps)
        if torch.is_autocast_enabled(x.device.type):  # Which would compute it in fp32 in some versions of torch.
            with torch.autocast(x.device.type, enabled=False):
                return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.LayerNorm):
    """`weight * (x - mean(x)) / sqrt(variance(x) + eps) + bias` (Ba et al. 2016), in the dtype of `x`.

    Args:
        size: Size of the last dimension.
        eps: Keeps the division finite.
    """

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__(size, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` of any shape that ends in `size`; the result has its shape."""
        # In shards, weights have fewer bits than what comes in: torch's own layer takes no such pair on a CPU.
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


Norm = RMSNorm | LayerNorm


def build_norm(kind: Literal["rms", "layer"], size: int, eps: float) -> Norm:
    """A norm of the last dimension."""
    return RMSNorm(size, eps) if kind == "rms" else LayerNorm(size, eps)
