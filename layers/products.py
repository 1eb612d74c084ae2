"""Several products of the same tokens as one."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_TOKENS = 64
"""With fewer, putting the weights side by side costs more than one product saves."""


def linears(x: Tensor, *layers: nn.Module, merged: nn.Module | None = None) -> tuple[Tensor, ...]:
    """What each layer makes of `x`, (..., M): side by side in one tensor where that is faster, else one tensor each.

    The weights side by side are a copy, which is kept for the backward pass. Where the weights themselves are not (in
    shards), layers have an attribute `apart`, and no copy is made.

    Args:
        x: The tokens.
        layers: What they go through.
        merged: All layers in one, of a model that no longer trains; None where there is none.
    """
    if merged is not None:
        return (merged(x),)
    plain = [layer for layer in layers if type(layer) is nn.Linear and _is_whole(layer)]
    with_bias = sum(layer.bias is not None for layer in plain)
    if x.numel() < MIN_TOKENS * x.size(-1) or len(plain) < len(layers) or with_bias not in (0, len(plain)):
        return tuple(layer(x) for layer in layers)
    weight = torch.cat([layer.weight for layer in plain])
    return (F.linear(x, weight, torch.cat([layer.bias for layer in plain]) if with_bias else None),)


def _is_whole(layer: nn.Linear) -> bool:
    """Whether a layer has its own weights at hand, in training."""
    return isinstance(layer.weight, nn.Parameter) and not hasattr(layer, "apart")
