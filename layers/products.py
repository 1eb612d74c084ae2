"""Several products of the same tokens as one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_TOKENS = 64
"""With fewer, putting the weights side by side costs more than one product saves."""


def linears(x: Tensor, *layers: nn.Module, merged: nn.Module | None = None) -> tuple[Tensor, ...]:
    """What each layer makes of `x`, (..., M): side by side in one tensor where that is faster, else one tensor each.

    Args:
        x: The tokens.
        layers: What they go through.
        merged: All layers in one, of a model that no longer trains; None where there is none.
    """
    if merged is not None:
        return (merged(x),)
    plain: list[nn.Linear] = [layer for layer in layers if isinstance(layer, nn.Linear) and layer.bias is None]
    if len(plain) < len(layers) or x.numel() < MIN_TOKENS * x.size(-1):
        return tuple(layer(x) for layer in layers)
    return (F.linear(x, torch.cat([layer.weight for layer in plain])),)
