"""The training kernel: y = H x row by row, with its gradient written by hand.

With z = x U, s = z Tᵀ and H = I − U T Uᵀ,

    y = x − s Uᵀ
    d = −(ȳ U) T                                   what reaches z
    x̄ = ȳ + d Uᵀ                                   which is Hᵀ ȳ
    Ū = xᵀ d − ȳᵀ s − U (S + Sᵀ),  S = striu(dᵀ s)  the last term is the way through T
    ū = (Ū − û (û · Ū)) / ‖u‖                      through the normalisation: orthogonal to u

Autograd would reach the same numbers through a dozen saved tensors a layer. Here x and the slim s (n × r) are kept, y
is not, and T is a constant of the graph: it may be factored for all layers at once, and once for many calls.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hra_diffusion.householder.chain import column_norms
from hra_diffusion.householder.compact_wy import CompactWY, factor, full_precision


def reflect(x: Tensor, u: Tensor, factored: CompactWY | None = None) -> Tensor:
    """Apply the chain with columns u (d, r) to the rows of x (*, d); differentiable once in both.

    Args:
        x: the rows. The result has their shape and dtype.
        u: the trainable columns, float32 or float64.
        factored: `factor(u, x.dtype)`, when the caller already has it.
    """
    with full_precision(x.device):
        if factored is None:
            with torch.no_grad():
                factored = factor(u, x.dtype)
        return _Reflect.apply(x, u, *factored)


class _Reflect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, U: Tensor, T: Tensor) -> Tensor:
        rows = _rows(x)
        s = (_times(rows, U).to(T.dtype) @ T.mT).to(x.dtype)
        ctx.save_for_backward(x, u, U, T, s)
        return _add_outer(rows, s, U, alpha=-1).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        x, u, U, T, s = ctx.saved_tensors
        with full_precision(grad.device):
            grad_rows = _rows(grad)
            d = -(_times(grad_rows, U).to(T.dtype) @ T).to(grad.dtype)
            grad_x = _add_outer(grad_rows, d, U).view(grad.shape) if ctx.needs_input_grad[0] else None
            grad_u = _columns_gradient(x, u, U, s, grad_rows, d) if ctx.needs_input_grad[1] else None
        return grad_x, grad_u, None, None


def _columns_gradient(x: Tensor, u: Tensor, U: Tensor, s: Tensor, grad_rows: Tensor, d: Tensor) -> Tensor:
    direct = (_correlate(_rows(x), d) - _correlate(grad_rows, s)).to(u.dtype)
    S = torch.triu(_correlate(d, s), diagonal=1).to(u.dtype)
    grad_unit = direct - U.to(u.dtype) @ (S + S.mT)
    norms = column_norms(u)
    unit = u / norms
    return (grad_unit - unit * (unit * grad_unit).sum(dim=0)) / norms


# Rows are (n, d), or (batch, n, d) where d is not the contiguous dimension, as for pictures: flattening would copy.


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 3 and x.stride(-1) != 1 else x.reshape(-1, x.shape[-1])


def _times(rows: Tensor, U: Tensor) -> Tensor:
    """Rows times U."""
    return rows @ U if rows.dim() == 2 else torch.bmm(rows, U.expand(len(rows), -1, -1))


def _add_outer(rows: Tensor, s: Tensor, U: Tensor, alpha: int = 1) -> Tensor:
    """Rows + alpha s Uᵀ, laid out in memory as the rows are."""
    if rows.dim() == 2:
        return torch.addmm(rows, s, U.mT, alpha=alpha)
    return torch.baddbmm(rows.mT, U.expand(len(rows), -1, -1), s.mT, alpha=alpha).mT


def _correlate(rows: Tensor, s: Tensor) -> Tensor:
    """Rowsᵀ s, summed over all rows."""
    s = s.reshape(*rows.shape[:-1], s.shape[-1])
    return rows.mT @ s if rows.dim() == 2 else torch.bmm(rows.mT, s).sum(dim=0)
