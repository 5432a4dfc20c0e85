"""A chain of Householder reflections, written the way it is defined.

    H = H₁ H₂ ⋯ H_r,   Hᵢ = I − 2 ûᵢ ûᵢᵀ,   û = u / ‖u‖

U is a (d, r) matrix whose columns are u₁ … u_r; H is orthogonal and depends on their directions alone. A zero column
stands for the identity. Here is the readable twin of `compact_wy` and `kernel`: it forms H, they never do.

Source: Yuan, Liu, Xu, "Bridging The Gap between Low-rank and Orthogonal Adaptation via Householder Reflection
Adaptation", NeurIPS 2024, arXiv 2405.17484, section 3.1.
"""

import torch
from torch import Tensor


def column_norms(U: Tensor) -> Tensor:
    """Lengths of the columns of U (..., d, r), as (..., 1, r); never quite zero, so that they can divide."""
    return torch.linalg.vector_norm(U, dim=-2, keepdim=True).clamp_min(torch.finfo(U.dtype).tiny)


def unit_columns(U: Tensor) -> Tensor:
    """Divide each column of U (..., d, r) by its length; zero columns stay zero."""
    return U / column_norms(U)


def chain_matrix(U: Tensor) -> Tensor:
    """Multiply the reflections of U (d, r) out to the orthogonal matrix H (d, d)."""
    H = torch.eye(U.shape[0], dtype=U.dtype, device=U.device)
    for u in unit_columns(U).unbind(dim=1):
        H = H - 2 * torch.outer(H @ u, u)
    return H


def chain_apply(x: Tensor, U: Tensor) -> Tensor:
    """Apply the chain of U (d, r) to the rows of x (*, d): H x for each row x."""
    return x @ chain_matrix(U).mT
