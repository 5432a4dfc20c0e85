"""A chain of Householder reflections by its definition.

    H = H₁ H₂ ⋯ H_r,   Hᵢ = I − 2 ûᵢ ûᵢᵀ,   û = u / ‖u‖

U is a (d, r) matrix with columns u₁ … u_r; H is orthogonal and depends on their directions only. A zero column is the
identity. This module is the readable twin of `compact_wy` and `kernel`: it forms H, and they do not.

Source: Yuan, Liu, Xu, "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection
Adaptation", NeurIPS 2024, arXiv 2405.17484, section 3.1.
"""

import torch
from torch import Tensor


def column_norms(U: Tensor) -> Tensor:
    """Return the lengths of the columns of U (..., d, r), as (..., 1, r); at least the smallest normal number."""
    return torch.linalg.vector_norm(U, dim=-2, keepdim=True).clamp_min(torch.finfo(U.dtype).tiny)


def unit_columns(U: Tensor) -> Tensor:
    """Normalize the columns of U (..., d, r) to length 1; zero columns stay zero."""
    return U / column_norms(U)


def chain_matrix(U: Tensor) -> Tensor:
    """Return the orthogonal matrix H (d, d) of the chain with columns U (d, r)."""
    H = torch.eye(U.shape[0], dtype=U.dtype, device=U.device)
    for u in unit_columns(U).unbind(dim=1):
        H = H - 2 * torch.outer(H @ u, u)
    return H


def chain_apply(x: Tensor, U: Tensor) -> Tensor:
    """Return H x for each row of x (*, d), for the chain with columns U (d, r)."""
    return x @ chain_matrix(U).mT
