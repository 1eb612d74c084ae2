"""Three kinds of positions, by which a model knows the order of its tokens.

Sinusoidal and learned positions are added to the embeddings; rotary ones rotate queries and keys inside attention.

Shapes: B batch, T tokens, H heads, D head size, M model size.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn


def _angles(max_len: int, size: int, base: float, scaling: str | None = None) -> Tensor:
    """Angles `position / base^(2i / size)` of shape (max_len, size / 2), in fp64 so that long tables stay exact."""
    if size % 2:
        raise ValueError(f"positions need an even size to pair sines with cosines, got {size}")
    frequencies = base ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    return torch.outer(torch.arange(max_len, dtype=torch.float64), _scaled(frequencies, scaling))


def _scaled(frequencies: Tensor, scaling: str | None) -> Tensor:
    """Frequencies for a context longer than the one that a model was first trained on; see `RotaryPositions`."""
    if scaling is None:
        return frequencies
    kind, *numbers = scaling.split(":")
    factor, *bounds = map(float, numbers)
    if kind == "linear":
        return frequencies / factor
    low, high, length = bounds
    turns = frequencies * length / (2 * torch.pi)  # Rotations of each in that context.
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / factor + kept * frequencies


def _rows(table_TM: Tensor, length: int, positions_BT: Tensor | None) -> Tensor:
    return table_TM[:length] if positions_BT is None else table_TM[positions_BT]


class SinusoidalPositions(nn.Module):
    """Fixed sines and cosines (Vaswani et al. 2017, section 3.5): sines in even columns, cosines in odd ones.

    Args:
        max_len: Longest sequence, in tokens.
        d_model: Model size M, even.
    """

    table_TM: Tensor

    def __init__(self, max_len: int, d_model: int) -> None:
        super().__init__()
        angles = _angles(max_len, d_model, base=10_000.0)
        table = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
        self.register_buffer("table_TM", table.to(torch.get_default_dtype()), persistent=False)

    def forward(self, x_BTM: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """Add `positions_BT`, or 0 to T - 1, to embeddings of shape (B, T, M)."""
        return x_BTM + _rows(self.table_TM, x_BTM.size(1), positions_BT).to(x_BTM.dtype)


class LearnedPositions(nn.Module):
    """One trained vector per position.

    Args:
        max_len: Longest sequence, in tokens.
        d_model: Model size M.
    """

    def __init__(self, max_len: int, d_model: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(max_len, d_model)

    def forward(self, x_BTM: Tensor, positions_BT: Tensor | None = None) -> Tensor:
        """Add `positions_BT`, or 0 to T - 1, to embeddings of shape (B, T, M)."""
        return x_BTM + _rows(self.embedding.weight, x_BTM.size(1), positions_BT)


class RotaryAngles(NamedTuple):
    """Cosines and sines by which queries and keys are rotated: of shape (T, D), (B, 1, T, D) or (B, H, T, D)."""

    cos: Tensor
    sin: Tensor

    def last(self) -> "RotaryAngles":
        """The angles of the last token."""
        return RotaryAngles(self.cos[..., -1:, :], self.sin[..., -1:, :])


def apply_rotary(x_BHTD: Tensor, angles: RotaryAngles) -> Tensor:
    """Rotate queries or keys by their angles (Su et al. 2021, equation 34)."""
    cos, sin = angles.cos.to(x_BHTD.dtype), angles.sin.to(x_BHTD.dtype)
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos + torch.cat((-second, first), dim=-1) * sin


class RotaryPositions(nn.Module):
    """Rotary positions (Su et al. 2021, "RoFormer", equation 34).

    Each pair of columns (i, i + D/2) of a query or key is rotated by `position / base^(2i / D)`, so that the product
    of a query and a key depends on their distance alone.

    Args:
        max_len: Longest sequence, in tokens.
        head_size: Head size D, even.
        base: Longest wavelength divided by 2 pi, in tokens.
        scaling: "linear:FACTOR" divides all angles (Chen et al. 2023, "Position Interpolation"). With
            "llama3:FACTOR:LOW:HIGH:LENGTH" (Grattafiori et al. 2024, "The Llama 3 Herd of Models"; the formula is that
            of Llama 3.1's published code) those of less than LOW rotations in LENGTH tokens are divided, those of
            more than HIGH rotations are kept, and what lies between is a mean of both.
    """

    cos_TD: Tensor
    sin_TD: Tensor

    def __init__(self, max_len: int, head_size: int, base: float = 10_000.0, scaling: str | None = None) -> None:
        super().__init__()
        angles = _angles(max_len, head_size, base, scaling).repeat(1, 2)
        self.register_buffer("cos_TD", angles.cos().to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("sin_TD", angles.sin().to(torch.get_default_dtype()), persistent=False)

    def forward(self, length: int, positions_BT: Tensor | None = None) -> RotaryAngles:
        """The angles of tokens at `positions_BT`, or at 0 to `length` - 1.

        Positions may be of shape (B, H, T), where each head has its own.
        """
        tables = [_rows(table_TD, length, positions_BT) for table_TD in (self.cos_TD, self.sin_TD)]
        for_all_heads = positions_BT is not None and positions_BT.ndim == 2
        return RotaryAngles(*(table.unsqueeze(1) if for_all_heads else table for table in tables))


def build_positions(
    kind: Literal["sinusoidal", "learned", "rotary"],
    *,
    max_len: int,
    d_model: int,
    head_size: int,
    theta: float = 10_000.0,
    scaling: str | None = None,
) -> tuple[nn.Module | None, RotaryPositions | None]:
    """The positions of a model: what is added to its embeddings or None, and rotary positions or None."""
    if kind == "rotary":
        return None, RotaryPositions(max_len, head_size, theta, scaling)
    added = LearnedPositions if kind == "learned" else SinusoidalPositions
    return added(max_len, d_model), None
