"""Compact WY form of a chain of reflections: H = I − U T Uᵀ, without ever forming a d × d matrix.

    T⁻¹ = ½ diag(UᵀU) + striu(UᵀU)        (striu: the strictly upper triangle)

T is r × r and upper triangular: one Gram product and one triangular solve. Applying H to n rows costs O(n d r). A zero
column would put a 0 on the diagonal; any other value there makes it the identity reflection, so it gets ½, and chains
of different ranks can share one zero-padded buffer.

T is factored in float32 or wider from the very columns that will be applied: whatever those were rounded to, the H of
a half-precision model is orthogonal to float32 accuracy.

Source: Schreiber and Van Loan, "A Storage-Efficient WY Representation for Products of Householder Transformations",
1989; Golub and Van Loan, "Matrix Computations", section 5.1.7.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hra_diffusion.householder.chain import unit_columns
from hra_diffusion.householder.columns_first import add, product, transposed


class CompactWY(NamedTuple):
    """H = I − U T Uᵀ with U (..., d, r) and T (..., r, r)."""

    U: Tensor
    T: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """H x for each row of x (*, d)."""
        return self.apply_in_parts(x)[0]

    def apply_in_parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """H x for each row of x (*, d), and the slim s = T Uᵀ X, on its side, with which H X = X − U s."""
        X = transposed(x, images=x.dim() == 3 and x.stride(-1) != 1)
        s = (self.T @ product(self.U.mT, X).to(self.T.dtype)).to(x.dtype)
        return add(X, self.U, s, alpha=-1).mT.view(x.shape), s

    def inverse(self) -> "CompactWY":
        """H⁻¹ = Hᵀ = I − U Tᵀ Uᵀ."""
        return CompactWY(self.U, self.T.mT)

    def low_rank_delta(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """Factors B (out, r) and A (r, d) of W H − W = B A, for a weight W (out, d): the exact LoRA of the chain."""
        A = self.U.mT.to(self.T.dtype)
        return -(self.T.mT @ (A @ W.mT.to(self.T.dtype))).mT, A

    def rotate_weight(self, W: Tensor) -> Tensor:
        """Return the adapted weight W H (out, d), computed in T's precision and rounded to W's."""
        B, A = self.low_rank_delta(W)
        return torch.addmm(W.to(B.dtype), B, A).to(W.dtype)


def orthonormal_delta(U: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
    """Factors B (out, k) and A (k, d) of W H − W = B A, where A has orthonormal rows and k = min(d, r).

    With Q an orthonormal basis of the columns' span and K = Qᵀ H Q: A = Qᵀ, B = W Q (K − I). B is as small as the
    update itself, so that rounding it costs no more than rounding the update. Where reflections nearly cancel, the
    factors of `low_rank_delta` are large numbers with a small product: rounded to float16, it would be mostly error.

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
        dtype: what the returned columns are rounded to, and T is made for; U's own (at least float32) when left out.
    """
    wide = torch.promote_types(torch.promote_types(U.dtype, torch.float32), dtype or torch.float32)
    columns = unit_columns(U.to(wide)).to(dtype or wide).mT.contiguous().mT  # each column in one piece
    gram = columns.to(wide).mT @ columns.to(wide)
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    halves = torch.where(diagonal > 0, diagonal / 2, 0.5)
    inverse = torch.triu(gram, diagonal=1) + torch.diag_embed(halves)
    eye = torch.eye(U.shape[-1], dtype=wide, device=U.device)
    return CompactWY(columns, torch.linalg.solve_triangular(inverse, eye.expand_as(inverse), upper=True))


def full_precision(device: torch.device) -> AbstractContextManager[Any, Any]:
    """Switch autocasting off: a T computed in half precision would leave the orthogonal group."""
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
