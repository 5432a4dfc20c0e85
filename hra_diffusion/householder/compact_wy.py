"""Compact WY form of a chain of reflections, H = I − U T Uᵀ, without d × d matrices.

    T⁻¹ = ½ diag(UᵀU) + striu(UᵀU)        (striu: the strictly upper triangle)

T is r × r and upper triangular: one Gram product and one triangular solve. Applying H to n rows costs O(n d r). A zero
column would put a 0 on the diagonal of T⁻¹; ½ instead makes it the identity reflection. So chains of different ranks
can share one zero-padded buffer.

T is factored in float32 or wider from the rounded columns: the H of a half-precision model is orthogonal to float32
accuracy.

Source: Schreiber and Van Loan, "A Storage-Efficient WY Representation for Products of Householder Transformations",
1989; Golub and Van Loan, "Matrix Computations", section 5.1.7.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hra_diffusion.householder.chain import unit_columns
from hra_diffusion.householder.columns_first import add, product, transposed
from hra_diffusion.householder.recording import inverted_by_products, is_recording


class CompactWY(NamedTuple):
    """H = I − U T Uᵀ with U (..., d, r) and T (..., r, r)."""

    U: Tensor
    T: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Return H x for each row of x (*, d)."""
        X = transposed(x, images=x.dim() == 3 and x.stride(-1) != 1)
        s = (-self.T @ product(self.U.mT, X).to(self.T.dtype)).to(x.dtype)
        return add(X, self.U, s).mT.view(x.shape)

    def inverse(self) -> "CompactWY":
        """Return H⁻¹ = Hᵀ = I − U Tᵀ Uᵀ."""
        return CompactWY(self.U, self.T.mT)

    def low_rank_delta(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """Return B (out, r) and A (r, d) of W H − W = B A for a weight W (out, d): the exact LoRA of the chain."""
        A = self.U.mT.to(self.T.dtype)
        return -(self.T.mT @ (A @ W.mT.to(self.T.dtype))).mT, A

    def rotate_weight(self, W: Tensor) -> Tensor:
        """Return the adapted weight W H (out, d), computed in T's precision and rounded to W's."""
        B, A = self.low_rank_delta(W)
        return torch.addmm(W.to(B.dtype), B, A).to(W.dtype)


def orthonormal_delta(U: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """Return B (out, k) and A (k, d) of W H − W = B A, where A has orthonormal rows and k = min(d, r).

    With Q an orthonormal basis of the columns' span and K = Qᵀ H Q: A = Qᵀ, B = W Q (K − I). B is as small as the
    update, and rounding it costs no more than rounding the update. Where reflections nearly cancel, the factors of
    `low_rank_delta` are large numbers with a small product: rounding them to float16 would make it mostly error.

    Args:
        U: the columns (d, r) of a chain.
        W: a weight (out, d), of U's dtype.
    """
    columns, T = factor(U)
    Q = torch.linalg.qr(columns).Q
    P = Q.mT @ columns
    return -(W @ Q) @ (P @ T @ P.mT), Q.mT


def factor(U: Tensor, dtype: torch.dtype | None = None) -> CompactWY:
    """Factor the chain with columns U (..., d, r); differentiable, and batched over leading dimensions.

    Args:
        U: the columns, of any length; zero columns are identities.
        dtype: the dtype of the returned columns; by default that of U, at least float32.

    Returns:
        The unit columns, and T in float32 or wider.
    """
    columns, M = unit_factors(U, dtype)
    return CompactWY(columns, invert_triangle(M))


def unit_factors(U: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Return the unit columns of chains U (..., d, r) in a dtype, as in `factor`, and T⁻¹ (..., r, r)."""
    wide = torch.promote_types(torch.promote_types(U.dtype, torch.float32), dtype or torch.float32)
    columns = unit_columns(U.to(wide)).to(dtype or wide).mT.contiguous().mT  # each column contiguous
    gram = columns.to(wide).mT @ columns.to(wide)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    halves = torch.where(diagonal > 0, diagonal / 2, 0.5)
    return columns, torch.triu(gram, diagonal=1) + torch.diag_embed(halves)


def invert_triangle(M: Tensor) -> Tensor:
    """Return the inverse of upper triangular matrices M (..., r, r)."""
    if is_recording():
        return inverted_by_products(M)
    eye = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    return torch.linalg.solve_triangular(M, eye.expand_as(M), upper=True)


def full_precision(device: torch.device) -> AbstractContextManager[Any, Any]:
    """Disable autocasting within a `with` block: with T in half precision, H would not be orthogonal."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
