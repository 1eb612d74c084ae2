"""Linear layers whose weights take one byte.

Shapes: B batch, T tokens, I inputs, O outputs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """A linear layer: whole numbers from -127 to 127, and for each output a scale, and a bias where there is one.

    The scale maps the largest weight of an output to 127, and each weight is rounded to the nearest number (absmax
    quantisation of rows; Dettmers et al. 2022, "LLM.int8()", section 2.1). Inputs stay as they are, and biases in fp32.

    Args:
        linear: The layer to round; it is left as it is.
    """

    weight: Tensor
    scale_O: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight_OI = linear.weight.detach().float()
        scale_O = weight_OI.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight_OI / scale_O[:, None]).round().to(torch.int8))
        self.register_buffer("scale_O", scale_O)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().to(torch.float32, copy=True))

    def forward(self, x_BTI: Tensor) -> Tensor:
        """Map (B, T, I) to (B, T, O), in the dtype of `x_BTI`."""
        return product(x_BTI, self.weight, self.scale_O, self.bias)


def product(x_BTI: Tensor, weight: Tensor, scale_O: Tensor | None, bias_O: Tensor | None) -> Tensor:
    """Outputs of a layer, (B, T, O), in the dtype of `x_BTI`; with scales, of rounded weights."""
    if scale_O is None:
        return F.linear(x_BTI, weight, bias_O)
    y_BTO = F.linear(x_BTI, weight.to(x_BTI.dtype)) * scale_O
    return (y_BTO if bias_O is None else y_BTO + bias_O).to(x_BTI.dtype)
