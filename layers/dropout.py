"""Dropout whose masks are a pure function of a sample's own seed.

Each element is kept by a hash of the sample's key, of the site in the model where it is dropped and of its index in
the sample: however a batch is split into parts, over processes too, a sample's masks are the same. Where no seeds are
set, and for attention on a GPU, whose fused kernels draw their own masks, torch's generator decides.

Shapes: B samples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.native import kernels

_MASKS_PER_MODULE = 8
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64


class Dropout(nn.Module):
    """`x / (1 - p)` where an element is kept, else 0 (Srivastava et al. 2014); `x` outside of training.

    Args:
        p: Probability that an element is dropped.

    Attributes:
        keys_B: Of the samples of the batch that comes next; None for torch's generator. See `set_sample_seeds`.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.keys_B: Tensor | None = None

    @property
    def is_active(self) -> bool:
        """Whether anything is dropped."""
        return self.training and self.p > 0

    def forward(self, x: Tensor, site: int = 0) -> Tensor:
        """Drop elements of `x`, whose first dimension is B; each call in a forward pass has another `site`."""
        if not self.is_active:
            return x
        if self.keys_B is None:
            return F.dropout(x, self.p)
        keys_B = self.keys_of(x)
        if kernels.serve(x):
            return kernels.dropout(x, keys_B, site, self.p)
        return torch.where(keep_mask(keys_B, x.shape, site, self.p), x / (1 - self.p), 0)

    def keys_of(self, x: Tensor) -> Tensor:
        """The keys, of the samples that `x` holds.

        Raises:
            ValueError: There are none, or those of another number of samples.
        """
        if self.keys_B is None or len(self.keys_B) != len(x):
            count = 0 if self.keys_B is None else len(self.keys_B)
            raise ValueError(f"expected as many sequences as there are seeds ({count}), got {len(x)}")
        return self.keys_B


def set_sample_seeds(model: nn.Module, seeds_B: Tensor | None) -> None:
    """Set the keys of all `Dropout` modules: of the samples of the batch that comes next.

    Args:
        model: Whose dropouts.
        seeds_B: A whole number of 64 bits for each sample, on the model's device; None for torch's generator.
    """
    modules = [module for module in model.modules() if isinstance(module, Dropout) and module.p > 0]
    if seeds_B is None or not modules:
        tables: list[Tensor] | list[None] = [None] * len(modules)
    else:
        number_N1 = torch.arange(1, len(modules) + 1, device=seeds_B.device)[:, None]
        tables = list(_mixed(seeds_B + number_N1 * _GOLDEN))
    for module, keys_B in zip(modules, tables, strict=True):
        module.keys_B = keys_B


def keep_mask(keys_B: Tensor, shape: torch.Size, site: int, p: float) -> Tensor:
    """True for what is kept, of a shape that begins with B.

    Two multiplications between shifts (after C. Wellons, "Prospecting for hash functions", 2018), with half of the key
    before each; `layers/native/kernels.cpp` has the same.
    """
    index_N = torch.arange(shape[1:].numel(), dtype=torch.int32, device=keys_B.device)
    first_B1, second_B1 = keys_B.to(torch.int32)[:, None], (keys_B >> 32).to(torch.int32)[:, None] + site
    x_BN = index_N ^ first_B1
    x_BN = (x_BN ^ ((x_BN >> 16) & 0xFFFF)) * 0x7FEB352D
    x_BN = (x_BN ^ ((x_BN >> 15) & 0x1FFFF)) + second_B1
    x_BN = x_BN * (0x846CA68B - 2**32)
    x_BN = (x_BN ^ ((x_BN >> 16) & 0xFFFF)) * 0x2C1B3C6D
    x_BN = x_BN ^ ((x_BN >> 15) & 0x1FFFF)
    return (x_BN >= kernels.threshold(p)).view(shape)


def _mixed(x: Tensor) -> Tensor:
    """A bijection of whole numbers of 64 bits that spreads each bit over all (Steele et al. 2014, SplitMix64)."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * (0x94D049BB133111EB - 2**64)
    return x ^ ((x >> 31) & (2**33 - 1))
