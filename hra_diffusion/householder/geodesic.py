"""Strength of a chain, and the mean of several, along geodesics of the orthogonal group.

    Hˢ = exp(s log H)                  strength: s = 0 is the identity, s = 1 is H, and every s is orthogonal
    exp(s₁ log H₁ + s₂ log H₂ + …)     Lie-algebra mean: no order, each with its own strength

H differs from I on the span of its columns alone. With an orthonormal basis Q of the joint span, K = Qᵀ H Q is a small
orthogonal matrix that holds all there is to know, and log K, the principal logarithm, is real iff det H = +1, that is,
for an even number of reflections.

Any orthogonal K is itself a product of reflections, found one column at a time. So the result is again a chain, of as
many columns as went in: it is applied, merged, exported and saved like any other.

Source: for the principal logarithm, Higham, "Functions of Matrices", 2008, chapter 11.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hra_diffusion.errors import ConfigError
from hra_diffusion.householder.compact_wy import factor

# Angles this near to π count as π: a half turn, whose plane is not determined by its eigenvalues.
_HALF_TURN = 1e-8
# A column this near to where it should be needs no reflection.
_IN_PLACE = 1e-12


@torch.no_grad()
def blend(chains: Sequence[Tensor], strengths: Sequence[float]) -> Tensor:
    """Blend chains into one: exp(Σ sᵢ log Hᵢ).

    Computed in float64 on the CPU, for one layer or a batch of equally shaped ones.

    Args:
        chains: columns (..., d, rᵢ) of each chain.
        strengths: one real number for each.

    Returns:
        Columns (..., d, min(d, Σ rᵢ)) of unit or zero length, in the first chain's dtype and on its device.

    Raises:
        ConfigError: a chain has an odd number of reflections.
    """
    like = chains[0]
    Q, R = torch.linalg.qr(torch.cat([columns.cpu().double() for columns in chains], dim=-1))
    parts = R.split([columns.shape[-1] for columns in chains], dim=-1)
    logarithms = [strength * log_orthogonal(_dense(own)) for own, strength in zip(parts, strengths, strict=True)]
    blended = reflections_of(torch.linalg.matrix_exp(torch.stack(logarithms).sum(dim=0)))
    return (Q.to(like.dtype) @ blended.to(like.dtype)).to(like.device)


@torch.no_grad()
def rotation_angles(columns: Tensor) -> Tensor:
    """Angles by which a chain turns the planes that it turns, in radians, largest first.

    Args:
        columns: of one layer or a batch of equally shaped ones, (..., d, r).

    Returns:
        min(d, r) angles in [0, π], (..., min(d, r)); a plane's angle comes twice, a mirrored direction has π.
    """
    K = _dense(torch.linalg.qr(columns.cpu().double(), mode="r").R)
    return torch.linalg.eigvals(K).angle().abs().sort(dim=-1, descending=True).values


def _dense(R: Tensor) -> Tensor:
    """Multiply a chain out, where its columns are few and short: those of R, in the coordinates of Q R = U."""
    U, T = factor(R)
    return torch.eye(R.shape[-2], dtype=R.dtype, device=R.device) - U @ T @ U.mT


def log_orthogonal(K: Tensor) -> Tensor:
    """Principal logarithm of orthogonal matrices K (..., k, k): real and skew.

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
    """Write orthogonal matrices K (..., k, k) as chains: columns (..., k, k) of unit or zero length.

    Reflection j takes the j-th column of what is left of K to the j-th unit vector; the next ones leave it there.
    """
    eye = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
    columns: list[Tensor] = []
    for j in range(K.shape[-1]):
        v = K[..., j] - eye[j]
        length = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        v = torch.where(length > _IN_PLACE, v / length, 0.0)
        K = K - 2 * v.unsqueeze(-1) * (v.unsqueeze(-2) @ K)
        columns.append(v)
    return torch.stack(columns, dim=-1)


def _eigen(K: Tensor) -> tuple[Tensor, Tensor]:
    """Angles (..., k) and orthonormal eigenvectors (..., k, k) of orthogonal matrices.

    Turned so that −1 lies in the widest gap between eigenvalues, K has a Cayley transform i (I − K)(I + K)⁻¹, which is
    Hermitian, bounded, and has the same eigenvectors: a symmetric eigenproblem, safe with repeated eigenvalues.
    """
    rough = torch.linalg.eigvals(K).angle().sort(dim=-1).values
    gaps = torch.diff(rough, append=rough[..., :1] + 2 * math.pi)
    widest, where = gaps.max(dim=-1, keepdim=True)
    turn = math.pi - rough.gather(-1, where) - widest / 2
    turned = torch.exp(1j * turn).unsqueeze(-1) * K
    eye = torch.eye(K.shape[-1], dtype=turned.dtype, device=K.device)
    cayley = torch.linalg.solve(eye + turned, 1j * (eye - turned))
    V = torch.linalg.eigh((cayley + cayley.mH) / 2).eigenvectors
    return (V.conj() * (K.to(V.dtype) @ V)).sum(dim=-2).angle(), V


def _pair_half_turns(angles: Tensor, V: Tensor, half_turns: Tensor) -> None:
    """Choose planes for the eigenvalues −1 of one matrix, in place: pairs of a real basis of their space."""
    count = int(half_turns.sum())
    if count % 2:
        raise ConfigError(
            "An adapter with an odd number of reflections has no strength but 0 and 1, and no mean with others: its "
            "determinant is −1. Train with an even rank r."
        )
    space = V[:, half_turns]
    real = torch.linalg.eigh((space @ space.mH).real).eigenvectors[:, -count:].to(V.dtype)
    planes = torch.cat([real[:, ::2] + 1j * real[:, 1::2], real[:, ::2] - 1j * real[:, 1::2]], dim=1)
    V[:, half_turns] = planes / math.sqrt(2)
    angles[half_turns] = math.pi * angles.new_tensor([1.0, -1.0]).repeat_interleave(count // 2)
