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
        rows = x.reshape(-1, x.shape[-1])
        s = ((rows @ U).to(T.dtype) @ T.mT).to(x.dtype)
        ctx.save_for_backward(x, u, U, T, s)
        return torch.addmm(rows, s, U.mT, alpha=-1).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        x, u, U, T, s = ctx.saved_tensors
        with full_precision(grad.device):
            grad_rows = grad.reshape(-1, grad.shape[-1])
            d = -((grad_rows @ U).to(T.dtype) @ T).to(grad.dtype)
            grad_x = torch.addmm(grad_rows, d, U.mT).view(grad.shape) if ctx.needs_input_grad[0] else None
            grad_u = _columns_gradient(x, u, U, s, grad_rows, d) if ctx.needs_input_grad[1] else None
        return grad_x, grad_u, None, None


def _columns_gradient(x: Tensor, u: Tensor, U: Tensor, s: Tensor, grad_rows: Tensor, d: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    direct = torch.addmm(rows.mT @ d, grad_rows.mT, s, alpha=-1).to(u.dtype)
    S = torch.triu(d.mT @ s, diagonal=1).to(u.dtype)
    grad_unit = direct - U.to(u.dtype) @ (S + S.mT)
    norms = column_norms(u)
    unit = u / norms
    return (grad_unit - unit * (unit * grad_unit).sum(dim=0)) / norms
