"""Several products of the same tokens as one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_TOKENS = 64
"""With fewer, putting the weights side by side costs more than one product saves."""


def linears(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """What each layer makes of `x`, (..., M): side by side in one tensor where that is faster, else one tensor each."""
    if (join := getattr(layers[0], "join", None)) is not None and (whole := join(layers)) is not None:
        return (whole(x),)  # Their weights stand side by side already (`decoding/merging.py`).
    plain = [layer for layer in layers if isinstance(layer, nn.Linear) and layer.bias is None]
    if len(plain) < len(layers) or x.numel() < MIN_TOKENS * x.size(-1):
        return tuple(layer(x) for layer in layers)
    return (F.linear(x, torch.cat([layer.weight for layer in plain])),)
