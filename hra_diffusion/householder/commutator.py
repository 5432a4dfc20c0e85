"""Relation of two chains: commutator, principal angles and cosine similarity, before anything is generated.

    C = [log H_a, log H_b],   cos θᵢ = σᵢ(Q_aᵀ Q_b),   cosine = ⟨log H_a, log H_b⟩ / (‖log H_a‖ ‖log H_b‖)

Q_a and Q_b are orthonormal bases of the columns' spans. C = 0 iff the chains commute with all their strengths: their
product has no order then, and equals their mean. If all principal angles are 90°, the updates of a weight add exactly,

    W H_a H_b − W = (W H_a − W) + (W H_b − W)

Everything is computed in the joint span, never d × d.

Source: Björck and Golub, "Numerical methods for computing angles between linear subspaces", 1973.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hra_diffusion.householder.geodesic import dense_chain, log_orthogonal
from hra_diffusion.householder.subspaces import orthonormal_basis


class Relation(NamedTuple):
    """Two chains of one layer, or of a batch (...) of layers of one shape.

    Attributes:
        commutator: ‖[log H_a, log H_b]‖_F (...), at most the product of both norms.
        inner: ⟨log H_a, log H_b⟩ (...), the Frobenius inner product.
        norms: ‖log H_a‖_F and ‖log H_b‖_F (2, ...): √2 times the root of the sum of squared rotation angles.
    """

    commutator: Tensor
    inner: Tensor
    norms: Tensor


@torch.no_grad()
def relate(a: Tensor, b: Tensor) -> Relation:
    """Compare chains with columns a (..., d, r_a) and b (..., d, r_b), in float64 on the CPU.

    Raises:
        ConfigError: a chain has an odd number of reflections, and no logarithm.
    """
    R = torch.linalg.qr(torch.cat([a.cpu().double(), b.cpu().double()], dim=-1), mode="r").R
    A, B = (log_orthogonal(dense_chain(part)) for part in R.split([a.shape[-1], b.shape[-1]], dim=-1))
    norm = torch.linalg.matrix_norm
    return Relation(norm(A @ B - B @ A), (A * B).sum(dim=(-2, -1)), torch.stack([norm(A), norm(B)]))


@torch.no_grad()
def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """Return the principal angles of the spans of columns a (d, r_a) and b (d, r_b), in radians, smallest first.

    Computed in float64. Equal and zero columns are counted once and not at all: the number of angles is the smaller
    rank of both.
    """
    overlap = orthonormal_basis(a.cpu().double()).mT @ orthonormal_basis(b.cpu().double())
    return torch.linalg.svdvals(overlap).clamp(max=1.0).acos()
