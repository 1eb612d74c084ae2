"""Matrices that read the same inputs, joined into one: fewer products, and fewer kernels to launch on a GPU.

Query, key and value of self-attention become one layer, and gate and up. Their weights stand once in memory: what was
a layer of its own is then the rows of the one that it belongs to. Cross-attention keeps its own, since there only the
query is computed at each step.

Shapes: B batch, T tokens, I inputs, O outputs.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from decoding.int8 import Int8Linear, product
from layers.attention import MultiHeadAttention
from layers.block import Block
from layers.feed_forward import SwiGLU


class Rows(nn.Module):
    """Some outputs of a layer, which holds the weights.

    Args:
        whole: The layer.
        start, end: Which of its outputs.
    """

    def __init__(self, whole: nn.Linear | Int8Linear, start: int, end: int) -> None:
        super().__init__()
        self._whole, self._rows = (whole,), slice(start, end)  # In a tuple: it is part of another module already.

    @property
    def weight(self) -> Tensor:
        """Of its outputs, (O, I): a view."""
        return self._whole[0].weight[self._rows]

    @property
    def scale_O(self) -> Tensor | None:
        """Where weights take one byte: what they are multiplied by."""
        whole = self._whole[0]
        return whole.scale_O[self._rows] if isinstance(whole, Int8Linear) else None

    @property
    def bias(self) -> Tensor | None:
        """Of its outputs, (O,), where there is one: a view."""
        bias: Tensor | None = self._whole[0].bias
        return None if bias is None else bias[self._rows]

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Map (B, T, I) to (B, T, O)."""
        return product(x_BTI, self.weight, self.scale_O, self.bias)


def merge_products(model: nn.Module) -> None:
    """Join matrices of the blocks of a model that no longer trains, in place and one after the other."""
    for module in model.modules():
        if type(module) is Block and type(module.attention) is MultiHeadAttention:
            _merge(module.attention, ("query", "key", "value"))
        if type(module) is SwiGLU:
            _merge(module, ("gate", "up"))


@torch.no_grad()
def _merge(module: MultiHeadAttention | SwiGLU, names: Sequence[str]) -> None:
    layers = [getattr(module, name) for name in names]
    if {type(layer) for layer in layers} not in ({nn.Linear}, {Int8Linear}):
        return  # Merged already, or layers that nobody here knows.
    biases = [layer.bias for layer in layers if layer.bias is not None]
    if len(biases) not in (0, len(layers)):
        return
    ends = list(accumulate(len(layer.weight) for layer in layers))
    whole = layers[0]
    if isinstance(whole, Int8Linear):
        whole.scale_O = torch.cat([layer.scale_O for layer in layers])
        whole.weight = torch.cat([layer.weight for layer in layers])
        whole.bias = torch.cat(biases) if biases else None
    else:
        whole.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
        whole.bias = nn.Parameter(torch.cat(biases), requires_grad=False) if biases else None
        whole.out_features = ends[-1]
    module.merged = whole
    for name, start, end in zip(names, [0, *ends], ends, strict=False):
        setattr(module, name, Rows(whole, start, end))
