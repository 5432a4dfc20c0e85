"""The mean rotation angle of chains from a trace, without eigenvalues.

    tr(I − H) = tr(T UᵀU) = Σ over the rotated planes of 4 sin²(θ/2)

A chain of r reflections rotates r/2 planes. The root mean square of sin(θ/2) over them gives their mean angle. It needs
a Gram product and a triangular solve of r × r matrices, which a GPU computes while Python goes on; eigenvalues would
have to be waited for. In float32, angles below about 0.1° are rounding errors.
"""

import torch
from torch import Tensor

from hra_diffusion.householder.compact_wy import factor


@torch.no_grad()
def sine_squares(columns: Tensor) -> Tensor:
    """Return Σ 4 sin²(θ/2) over the rotated planes of chains with columns (..., d, r): shape (...), at least 0."""
    U, T = factor(columns)
    return (T * (U.mT @ U).mT).sum(dim=(-2, -1)).clamp(min=0)


def mean_angle(mean_square: Tensor) -> Tensor:
    """Return the angle θ in [0, π] with 4 sin²(θ/2) = ``mean_square``, element by element."""
    return 2 * torch.asin((mean_square / 4).clamp(max=1).sqrt())
