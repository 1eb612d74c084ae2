"""The feed-forward layer.

Shapes: B batch, T tokens, M model size, F feed-forward size.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from layers.native import kernels
from layers.products import linears


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))` (Shazeer 2020, "GLU Variants Improve Transformer", equation 6).

    Args:
        d_model: Model size M.
        d_ff: Hidden size F. The layer holds three matrices of M x F.
        bias: Whether each has a bias.
    """

    def __init__(self, d_model: int, d_ff: int, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_ff, bias=bias)
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.merged: nn.Module | None = None  # Gate and up in one, where a model no longer trains.

    def forward(self, x_BTM: Tensor) -> Tensor:
        """Map (B, T, M) to (B, T, M), each token by itself."""
        both_BTF = linears(x_BTM, self.gate, self.up, merged=self.merged)
        if len(both_BTF) == 1 and kernels.serve(both_BTF[0]):
            return self.down(kernels.swiglu(both_BTF[0]))
        gate_BTF, up_BTF = both_BTF if len(both_BTF) == 2 else both_BTF[0].chunk(2, -1)
        return self.down(F.silu(gate_BTF) * up_BTF)


class GELU(nn.Module):
    """`down(gelu(up(x)))` (Hendrycks and Gimpel 2016), as GPT-2 has it.

    Args:
        d_model: Model size M.
        d_ff: Hidden size F. The layer holds two matrices of M x F.
        bias: Whether each has a bias.
        approximate: "none" for the function itself, "tanh" for its approximation, which GPT-2 was trained with.
    """

    def __init__(self, d_model: int, d_ff: int, bias: bool = False, approximate: str = "none") -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=bias)
        self.down = nn.Linear(d_ff, d_model, bias=bias)
        self.approximate = approximate

    def forward(self, x_BTM: Tensor) -> Tensor:
        """Map (B, T, M) to (B, T, M), each token by itself."""
        return self.down(F.gelu(self.up(x_BTM), approximate=self.approximate))


FeedForward = SwiGLU | GELU


def build_feed_forward(
    activation: Literal["swiglu", "gelu", "gelu_tanh"], d_model: int, d_ff: int, bias: bool
) -> FeedForward:
    """The feed-forward layer with this activation."""
    if activation == "swiglu":
        return SwiGLU(d_model, d_ff, bias)
    return GELU(d_model, d_ff, bias, "tanh" if activation == "gelu_tanh" else "none")
