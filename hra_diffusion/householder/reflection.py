"""The reflection of rows in training: y = H x for each row, with a handwritten gradient.

With rows x as columns of X, z = Uᵀ X, s = −T z and H = I − U T Uᵀ, T = M⁻¹,

    Y = X + U s
    q = −Tᵀ Uᵀ Ȳ                                    the gradient of z
    X̄ = Ȳ + U q                                     = Hᵀ Ȳ
    Ū = X qᵀ + Ȳ sᵀ
    M̄ = q sᵀ

`factoring` continues Ū and M̄ to the columns, for all layers at once.

Autograd would compute the same gradient from a dozen saved tensors per layer. Here T is a constant of the graph: it is
factored for all layers at once, and once for many calls. The graph keeps the slim s (r × n) and one of

    x                     nearly all of an adapter's memory, because a frozen layer does not keep it
    y                     if the next layer keeps y anyway, as a convolution does: X qᵀ = Y qᵀ − U s qᵀ
    nothing               if the operation before keeps the factors of x: see `recompute`

Second derivatives, and transforms of torch.func, differentiate Y = X − U M⁻¹ Uᵀ X as it is written.
"""

from typing import Any

import torch
from torch import Tensor

from hra_diffusion.householder import fused
from hra_diffusion.householder.columns_first import add, correlate, transposed
from hra_diffusion.householder.compact_wy import CompactWY, full_precision, invert_triangle
from hra_diffusion.householder.factoring import Factors, coefficients, factor_chains
from hra_diffusion.householder.recompute import Recomputed, recompute
from hra_diffusion.householder.recording import is_transformed


def reflect(x: Tensor, u: Tensor, *, output_is_kept: bool = False) -> Tensor:
    """Return H x for each row of x (*, d) and the chain with columns u (d, r); differentiable in both.

    Args:
        x: the rows. The result has their shape and dtype.
        u: the trainable columns, float32 or float64.
        output_is_kept: whether the next operation keeps the result for its gradient; x is then not kept.
    """
    return reflect_factored(x, factor_chains([u], x.dtype)[0], output_is_kept=output_is_kept)


def reflect_factored(x: Tensor, factors: Factors, *, output_is_kept: bool = False) -> Tensor:
    """Return H x as `reflect` does, for a chain factored for rows of x's dtype."""
    with full_precision(x.device):
        if is_transformed():
            return factors.apply_in_parts(x)[0]
        if not torch.is_grad_enabled():
            return _applied(x, factors)[0]
        recomputed = recompute(x) if factors.U.requires_grad and not output_is_kept else None
        return _Reflect.apply(x, factors.U, factors.M, factors, output_is_kept, recomputed)


class _Reflect(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        U: Tensor,
        M: Tensor,
        factors: Factors,
        output_is_kept: bool,
        recomputed: Recomputed | None,
    ) -> Tensor:
        y, s, ctx.is_fused = _applied(x, factors._replace(U=U, M=M))
        ctx.output_is_kept, ctx.recomputed, ctx.constants = output_is_kept, recomputed, factors[2:]
        keep_x = recomputed is None and ctx.needs_input_grad[1]
        ctx.save_for_backward(U, M, s, y if output_is_kept else x if keep_x else None)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (grad,) = grad_outputs
        with full_precision(grad.device):
            gradient = _differentiable_gradient if torch.is_grad_enabled() else _gradient
            return *gradient(ctx, grad), None, None, None


def _applied(x: Tensor, factors: Factors) -> tuple[Tensor, Tensor, bool]:
    """Return H x, the slim s, and whether fused kernels have computed them: their s is −s in another layout."""
    if fused.usable(x, factors.U.shape[-1]):
        done = fused.reflect_rows(x, factors.U, factors.T)
        if done is not None:
            return *done, True
    return *factors.apply_in_parts(x), False


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    U, _, s, kept = ctx.saved_tensors
    T, projection, _, parts = ctx.constants
    if ctx.is_fused:
        if not ctx.needs_input_grad[1]:
            done = fused.reflect_rows(grad, U, T.mT)
            done = None if done is None else (done[0], None, None)
        else:
            done = fused.reflect_rows_backward(
                grad,
                U,
                T,
                s,
                ctx.recomputed.source() if kept is None else kept,
                rows_are_output=ctx.output_is_kept,
                need_grad_x=ctx.needs_input_grad[0],
            )
        if done is not None:
            return done
        s = (s if grad.dim() != 3 or grad.stride(-1) == 1 else s.view(len(grad), -1, s.shape[-1])).mT.neg()
    images = s.dim() == 3
    G = transposed(grad, images)
    q = coefficients(parts, projection, G)
    grad_x = add(G, U, q).mT.view(grad.shape) if ctx.needs_input_grad[0] else None
    if not ctx.needs_input_grad[1]:
        return grad_x, None, None
    grad_M = correlate(q, s)
    X = transposed(ctx.recomputed.rows().to(q.dtype) if kept is None else kept, images)
    grad_U = torch.baddbmm(torch.bmm(q, X.mT), s, G.mT).sum(dim=0) if images else torch.addmm(q @ X.mT, s, G.mT)
    if ctx.output_is_kept:  # Then X is Y.
        grad_U = torch.addmm(grad_U, grad_M, U.mT, alpha=-1)
    return grad_x, grad_U.mT, grad_M


def _differentiable_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    U, M, _, kept = ctx.saved_tensors
    if not ctx.needs_input_grad[1]:
        return _differentiable_chain(U, M).inverse().apply(grad), None, None
    if ctx.output_is_kept:
        x = _differentiable_chain(U, M).inverse().apply(kept)
    else:
        x = ctx.recomputed.source().differentiable_rows().to(grad.dtype) if kept is None else kept
    x, U, M = (tensor.view_as(tensor) for tensor in (x, U, M))  # x may depend on U and M: three independent variables
    y = _differentiable_chain(U, M).apply(x)
    if not ctx.needs_input_grad[0]:
        of_U, of_M = torch.autograd.grad(y, (U, M), grad, create_graph=True)
        return None, of_U, of_M
    of_x, of_U, of_M = torch.autograd.grad(y, (x, U, M), grad, create_graph=True)
    return of_x, of_U, of_M


def _differentiable_chain(U: Tensor, M: Tensor) -> CompactWY:
    return CompactWY(U, invert_triangle(M.to(torch.promote_types(M.dtype, torch.float32))))
