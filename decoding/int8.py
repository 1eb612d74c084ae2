"""Linear layers whose weights take one byte.

Shapes: B batch, T tokens, I inputs, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """A linear layer without bias: whole numbers from -127 to 127, and a scale for each output.

    The scale maps the largest weight of an output to 127, and each weight is rounded to the nearest number (absmax
    quantisation of rows; Dettmers et al. 2022, "LLM.int8()", section 2.1). Inputs stay as they are.

    Args:
        linear: The layer to round; it is left as it is.
    """

    weight: Tensor
    scale_O: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI = linear.weight.detach().float()
        scale_O = weight_OI.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight_OI / scale_O[:, None]).round().to(torch.int8))
        self.register_buffer("scale_O", scale_O)

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Map (B, T, I) to (B, T, O), in the dtype of `x_BTI`."""
        return product(x_BTI, self.weight, self.scale_O)


def product(x_BTI: Tensor, weight: Tensor, scale_O: Tensor | None) -> Tensor:
    """Outputs of a layer without bias, (B, T, O), in the dtype of `x_BTI`; with scales, of rounded weights."""
    if scale_O is None:
        return F.linear(x_BTI, weight)
    return (F.linear(x_BTI, weight.to(x_BTI.dtype)) * scale_O).to(x_BTI.dtype)
