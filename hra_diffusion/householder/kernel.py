"""The training kernel: y = H x for each row, with a handwritten gradient.

With rows x as columns of X, z = Uᵀ X, s = T z and H = I − U T Uᵀ,

    Y = X − U s
    q = Tᵀ Uᵀ Ȳ                                     minus the gradient of z
    X̄ = Ȳ − U q                                     = Hᵀ Ȳ
    Ū = U S − X qᵀ − Ȳ sᵀ                           S, the gradient through T: q sᵀ with its upper triangle mirrored
    ū = Ū / ‖u‖

The diagonal of S, from that of T⁻¹, makes each column of Ū orthogonal to u: H does not depend on its length.

Autograd would compute the same gradient from a dozen saved tensors per layer. Here T is a constant of the graph: it can
be factored for all layers at once, and once for many calls. The graph keeps the slim s (r × n) and one of

    x                     nearly all of an adapter's memory, because a frozen layer does not keep it
    y                     if the next layer keeps y anyway, as a convolution does: X qᵀ = Y qᵀ + U s qᵀ
    nothing               if the operation before keeps the factors of x: see `recompute`
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hra_diffusion.householder.chain import column_norms
from hra_diffusion.householder.columns_first import add, correlate, product, transposed
from hra_diffusion.householder.compact_wy import CompactWY, factor, full_precision
from hra_diffusion.householder.recompute import recompute
from hra_diffusion.householder.recording import is_recording


def reflect(x: Tensor, u: Tensor, factored: CompactWY | None = None, *, output_is_kept: bool = False) -> Tensor:
    """Return H x for each row of x (*, d) and the chain with columns u (d, r); differentiable once in both.

    Args:
        x: the rows. The result has their shape and dtype.
        u: the trainable columns, float32 or float64.
        factored: `factor(u, x.dtype)`, if known.
        output_is_kept: whether the next operation keeps the result for its gradient; x is then not kept.
    """
    with full_precision(x.device):
        if is_recording():
            return factor(u, x.dtype).apply(x)
        if factored is None:
            with torch.no_grad():
                factored = factor(u, x.dtype)
        if not torch.is_grad_enabled():
            return factored.apply(x)
        return _Reflect.apply(x, u, *factored, output_is_kept, None if output_is_kept else recompute(x))


class _Reflect(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        u: Tensor,
        U: Tensor,
        T: Tensor,
        output_is_kept: bool,
        recomputed: Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        y, s = CompactWY(U, T).apply_in_parts(x)
        ctx.output_is_kept, ctx.recomputed = output_is_kept, recomputed
        ctx.save_for_backward(u, U, T, s, y if output_is_kept else x if recomputed is None else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        u, U, T, s, kept = ctx.saved_tensors
        with full_precision(grad.device):
            G = transposed(grad, images=s.dim() == 3)
            q = (T.mT @ product(U.mT, G).to(T.dtype)).to(grad.dtype)
            grad_x = add(G, U, q, alpha=-1).mT.view(grad.shape) if ctx.needs_input_grad[0] else None
            grad_u = None
            if ctx.needs_input_grad[1]:
                both = correlate(q, s).to(u.dtype)
                if kept is None:
                    direct, S = ctx.recomputed(q), _mirrored(both)
                else:
                    direct = correlate(q, transposed(kept, images=s.dim() == 3))
                    S = torch.triu(both - both.mT) if ctx.output_is_kept else _mirrored(both)
                direct = (direct + correlate(s, G)).mT.to(u.dtype)
                grad_u = torch.addmm(direct, U.to(u.dtype), S, beta=-1) / column_norms(u)
        return grad_x, grad_u, None, None, None, None


def _mirrored(both: Tensor) -> Tensor:
    """Return the symmetric matrix with the same upper triangle."""
    return torch.triu(both) + torch.triu(both, diagonal=1).mT
