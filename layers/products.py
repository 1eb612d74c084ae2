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
    if x.numel() < MIN_TOKENS * x.size(-1) or not all(map(_is_plain, layers)):
        return tuple(layer(x) for layer in layers)
    return (F.linear(x, torch.cat([layer.get_parameter("weight") for layer in layers])),)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer is its matrix and nothing else, in training."""
    plain = type(layer) is nn.Linear and layer.bias is None and isinstance(layer.weight, nn.Parameter)
    return plain and not hasattr(layer, "apart")
