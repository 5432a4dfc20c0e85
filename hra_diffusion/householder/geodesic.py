"""Strength of a chain, and the mean of several, along geodesics of the orthogonal group.

    Hˢ = exp(s log H)                  strength: s = 0 is the identity, s = 1 is H, and every s is orthogonal
    exp(s₁ log H₁ + s₂ log H₂ + …)     mean in the Lie algebra: independent of the order, one strength for each chain
    H_a (H_aᵀ H_b)ᵗ                    interpolation from H_a to H_b

H differs from I on the span of its columns only. With an orthonormal basis Q of the joint span, the small orthogonal
matrix K = Qᵀ H Q determines H. The principal logarithm log K is real iff det H = +1: for an even number of reflections.

Any orthogonal K is a product of reflections, computed one column at a time. The result is again a chain, with as many
columns as the input: it is applied, merged, exported and saved like any other.

Source: for the principal logarithm, Higham, "Functions of Matrices", 2008, chapter 11.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hra_diffusion.errors import ConfigError
from hra_diffusion.householder.compact_wy import factor

# Angles this near to π are treated as π, a half turn: its eigenvalues do not determine its plane.
_HALF_TURN = 1e-8
# A column this near to its unit vector needs no reflection.
_ALIGNED = 1e-12


@torch.no_grad()
def blend(chains: Sequence[Tensor], strengths: Sequence[float]) -> Tensor:
    """Return the chain of exp(Σ sᵢ log Hᵢ).

    Computed in float64 on the CPU, for one layer or a batch of equally shaped ones.

    Args:
        chains: columns (..., d, rᵢ) of each chain.
        strengths: a real number for each chain.

    Returns:
        Columns (..., d, min(d, Σ rᵢ)) of unit or zero length, in the first chain's dtype and on its device.

    Raises:
        ConfigError: a chain has an odd number of reflections.
    """
    Q, dense = _in_joint_span(chains)
    logarithms = [strength * log_orthogonal(K) for K, strength in zip(dense, strengths, strict=True)]
    return _columns_of(Q, torch.linalg.matrix_exp(torch.stack(logarithms).sum(dim=0)), chains[0])


@torch.no_grad()
def interpolate(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Return the chain of H_a (H_aᵀ H_b)ᵗ: the geodesic from H_a at t = 0 to H_b at t = 1.

    Computed in float64 on the CPU, for one layer or a batch of equally shaped ones.

    Args:
        a: columns (..., d, r_a).
        b: columns (..., d, r_b).
        t: position; outside of [0, 1] it extrapolates.

    Returns:
        Columns (..., d, min(d, r_a + r_b)) of unit or zero length, in a's dtype and on its device.

    Raises:
        ConfigError: one of the chains has an odd number of reflections and the other an even one.
    """
    Q, (A, B) = _in_joint_span((a, b))
    return _columns_of(Q, A @ torch.linalg.matrix_exp(t * log_orthogonal(A.mT @ B)), a)


@torch.no_grad()
def rotation_angles(columns: Tensor) -> Tensor:
    """Return the rotation angles of a chain, in radians, largest first.

    Args:
        columns: the columns (..., d, r) of one layer or a batch of equally shaped ones.

    Returns:
        Angles in [0, π], (..., min(d, r)): twice that of each rotated plane, and π for a mirrored direction.
    """
    K = dense_chain(torch.linalg.qr(columns.cpu().double(), mode="r").R)
    return torch.linalg.eigvals(K).angle().abs().sort(dim=-1, descending=True).values


def _in_joint_span(chains: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return an orthonormal basis Q of the joint span of chains, and the small matrix Qᵀ H Q of each, in float64."""
    Q, R = torch.linalg.qr(torch.cat([columns.cpu().double() for columns in chains], dim=-1))
    return Q, [dense_chain(part) for part in R.split([columns.shape[-1] for columns in chains], dim=-1)]


def _columns_of(Q: Tensor, K: Tensor, like: Tensor) -> Tensor:
    """Return the chain's columns for its small matrix K in the basis Q, with another's dtype and device."""
    return (Q.to(like.dtype) @ reflections_of(K).to(like.dtype)).to(like.device)


def dense_chain(R: Tensor) -> Tensor:
    """Return the small matrix Qᵀ H Q of a chain U = Q R, from its columns R (..., k, r) in the basis Q."""
    U, T = factor(R)
    return torch.eye(R.shape[-2], dtype=R.dtype, device=R.device) - U @ T @ U.mT


def log_orthogonal(K: Tensor) -> Tensor:
    """Return the principal logarithm of orthogonal matrices K (..., k, k): real and skew.

    Raises:
        ConfigError: det K = −1; no real logarithm exists.
    """
    angles, V = _eigen(K)
    half_turns = angles.abs() > math.pi - _HALF_TURN
    for index in half_turns.any(dim=-1).nonzero().unbind():
        _pair_half_turns(angles[tuple(index)], V[tuple(index)], half_turns[tuple(index)])
    L = ((V * (1j * angles).unsqueeze(-2)) @ V.mH).real
    return (L - L.mT) / 2


def reflections_of(K: Tensor) -> Tensor:
    """Return orthogonal matrices K (..., k, k) as chains: columns (..., k, k) of unit or zero length.

    Reflection j maps the j-th column of the remaining K to the j-th unit vector; later reflections keep it fixed.
    """
    eye = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
    columns: list[Tensor] = []
    for j in range(K.shape[-1]):
        v = K[..., j] - eye[j]
        length = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        v = torch.where(length > _ALIGNED, v / length, 0.0)
        K = K - 2 * v.unsqueeze(-1) * (v.unsqueeze(-2) @ K)
        columns.append(v)
    return torch.stack(columns, dim=-1)


def _eigen(K: Tensor) -> tuple[Tensor, Tensor]:
    """Return the angles (..., k) and orthonormal eigenvectors (..., k, k) of orthogonal matrices.

    A phase puts −1 into the widest gap between the eigenvalues of K. The Cayley transform i (I − K)(I + K)⁻¹ is then
    Hermitian and bounded, with the same eigenvectors: a symmetric eigenproblem, safe with repeated eigenvalues.
    """
    rough = torch.linalg.eigvals(K).angle().sort(dim=-1).values
    gaps = torch.diff(rough, append=rough[..., :1] + 2 * math.pi)
    widest, index = gaps.max(dim=-1, keepdim=True)
    turn = math.pi - rough.gather(-1, index) - widest / 2
    turned = torch.exp(1j * turn).unsqueeze(-1) * K
    eye = torch.eye(K.shape[-1], dtype=turned.dtype, device=K.device)
    cayley = torch.linalg.solve(eye + turned, 1j * (eye - turned))
    V = torch.linalg.eigh((cayley + cayley.mH) / 2).eigenvectors
    return (V.conj() * (K.to(V.dtype) @ V)).sum(dim=-2).angle(), V


def _pair_half_turns(angles: Tensor, V: Tensor, half_turns: Tensor) -> None:
    """Choose planes for the eigenvalues −1 of one matrix, in place: pairs of a real basis of the eigenspace."""
    count = int(half_turns.sum())
    if count % 2:
        raise ConfigError(
            "An adapter with an odd number of reflections has the determinant −1: its strength can be 0 or 1 only, and "
            "it has no mean with others. Train with an even rank r."
        )
    space = V[:, half_turns]
    real = torch.linalg.eigh((space @ space.mH).real).eigenvectors[:, -count:].to(V.dtype)
    planes = torch.cat([real[:, ::2] + 1j * real[:, 1::2], real[:, ::2] - 1j * real[:, 1::2]], dim=1)
    V[:, half_turns] = planes / math.sqrt(2)
    angles[half_turns] = math.pi * angles.new_tensor([1.0, -1.0]).repeat_interleave(count // 2)
