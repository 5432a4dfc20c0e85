"""A chain as rotations of orthogonal planes, the largest first: the form in which it can be shortened.

An orthogonal H with det H = +1 rotates orthogonal planes by angles θ₁ ≥ θ₂ ≥ … in [0, π]. Two reflections rotate the
plane of orthonormal x and y by θ: those of x and of cos(θ/2) x + sin(θ/2) y. Dropping planes is the best approximation
of H − I of lower rank in the Frobenius norm, with the squared error

    ‖H − H'‖² = Σ over the dropped planes of 8 sin²(θ/2)

Source: the real normal form of orthogonal matrices; Golub and Van Loan, "Matrix Computations", section 7.4; for the
best approximation, Eckart and Young, 1936, since the singular values of H − I are 2 sin(θ/2), twice for each plane.
"""

import math

import torch
from torch import Tensor

from hra_diffusion.householder.geodesic import dense_chain, log_orthogonal


@torch.no_grad()
def rotation_planes(U: Tensor) -> tuple[Tensor, Tensor]:
    """Return a chain with columns U (..., d, r) as pairs of reflections, one pair for each plane.

    Computed in float64 on the CPU. The first 2 j columns are the chain without all but the j largest planes.

    Returns:
        The columns (..., d, 2 m), m = ⌊min(d, r) / 2⌋, in float64, and the angles (..., m) in [0, π], largest first.

    Raises:
        ConfigError: the chain has an odd number of reflections.
    """
    Q, R = torch.linalg.qr(U.cpu().double())
    m = R.shape[-2] // 2
    hermitian = -1j * log_orthogonal(dense_chain(R))
    angles, V = torch.linalg.eigh((hermitian + hermitian.mH) / 2)
    angles, V = angles.flip(-1)[..., :m].clamp(min=0), V.flip(-1)[..., :m] * math.sqrt(2)
    half = (angles / 2).unsqueeze(-2)
    pairs = torch.stack([V.real, half.cos() * V.real + half.sin() * V.imag], dim=-1)
    return Q @ pairs.flatten(-2), angles


def squared_norms(angles: Tensor) -> Tensor:
    """Return the share 8 sin²(θ/2) of each plane in ‖H − I‖²_F, for angles in radians."""
    return 8 * (angles / 2).sin().square()
