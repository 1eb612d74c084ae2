"""Muon's directions: matrices made orthogonal, each on one of the ranks.

Shapes: N matrices of one shape, R rows, C columns.
"""

import torch
from torch import Tensor

ORTHOGONAL_STEPS = 5


def orthogonalize(matrices_NRC: Tensor, dtype: torch.dtype) -> Tensor:
    """Bring all singular values of each matrix near 1, keeping its singular vectors.

    Five Newton-Schulz steps with the quintic `a X + b (X X^T) X + c (X X^T)^2 X` (Jordan et al. 2024, "Muon"): the
    values end between about 0.7 and 1.2.

    Args:
        matrices_NRC: N matrices of R rows and C columns.
        dtype: What to compute in.

    Returns:
        N matrices of R x C, in `dtype`.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrices_NRC.size(-2) > matrices_NRC.size(-1)
    x = matrices_NRC.mT if tall else matrices_NRC
    norms = x.norm(dim=(-2, -1), keepdim=True) + 1e-7
    x = torch.div(x, norms, out=torch.empty_like(x, dtype=dtype))  # Rounded once, in one pass.
    for _ in range(ORTHOGONAL_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
