"""The factors of chains in a training step: computed for many layers at once, also in the backward pass.

A layer's gradient with respect to its columns u passes through the unit columns U and the triangle M = T⁻¹,

    H = I − U M⁻¹ Uᵀ,   M = ½ diag(UᵀU) + striu(UᵀU),   U = u / ‖u‖

Each layer returns Ū and M̄, which are products with its rows. The rest has no rows: it is done here once for all chains
of a shape, stacked, after the last of them,

    G = Ū + U S                                     S = M̄ with its upper triangle mirrored
    ū = (G − U diag(UᵀG)) / ‖u‖

In a first derivative each column of G is orthogonal to u already, because H does not depend on its length.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hra_diffusion.householder.chain import column_norms
from hra_diffusion.householder.compact_wy import CompactWY, full_precision, invert_triangle, unit_factors


class Factors(NamedTuple):
    """A chain of a training step, H = I − U T Uᵀ: U (d, r) and M (r, r) carry its gradient, T = M⁻¹ is a constant."""

    U: Tensor
    M: Tensor
    T: Tensor

    @property
    def compact(self) -> CompactWY:
        """The compact WY form."""
        return CompactWY(self.U, self.T)


def factor_chains(columns: Sequence[Tensor], dtype: torch.dtype) -> list[Factors]:
    """Factor chains of one shape, dtype and device, differentiably in their columns (d, r).

    Args:
        columns: the columns of each chain, of any length; zero columns are identities.
        dtype: the dtype of the rows that the chains are applied to.
    """
    with full_precision(columns[0].device):
        if torch.compiler.is_compiling():
            U, M = unit_factors(torch.stack(list(columns)), dtype)
            T = invert_triangle(M.detach())
            parts = (U.unbind(), M.to(dtype).unbind())
        else:
            T, *outputs = _FactorChains.apply(dtype, *columns)
            parts = (outputs[: len(columns)], outputs[len(columns) :])
        return [Factors(*chain) for chain in zip(*parts, T.unbind(), strict=True)]


class _FactorChains(torch.autograd.Function):
    """Stacked factors. Their values are kept as attributes: several backward passes may use them."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *columns: Tensor) -> tuple[Tensor, ...]:
        stacked = torch.stack(columns)
        U, M = unit_factors(stacked, dtype)
        T = invert_triangle(M)
        ctx.dtype, ctx.U, ctx.norms, ctx.wide = dtype, U.detach(), column_norms(stacked), M.dtype
        ctx.save_for_backward(*columns)
        ctx.mark_non_differentiable(T)
        ctx.set_materialize_grads(False)
        return T, *U.unbind(), *M.to(dtype).unbind()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = len(grad_outputs) // 2
        gradients = list(zip(grad_outputs[1 : 1 + count], grad_outputs[1 + count :], strict=True))
        used = [i for i, (of_U, _) in enumerate(gradients) if of_U is not None and ctx.needs_input_grad[1 + i]]
        results: list[Tensor | None] = [None] * count
        if used:
            of_U, of_M = zip(*(gradients[i] for i in used), strict=True)
            gradient = _differentiable_gradient if torch.is_grad_enabled() else _stacked_gradient
            with full_precision(ctx.U.device):
                for i, result in zip(used, gradient(ctx, used, of_U, of_M), strict=True):
                    results[i] = result
        return None, *results


def _stacked_gradient(ctx: Any, used: list[int], of_U: Sequence[Tensor], of_M: Sequence[Tensor]) -> Sequence[Tensor]:
    every = len(used) == len(ctx.U)
    U, norms = (kept if every else torch.stack([kept[i] for i in used]) for kept in (ctx.U, ctx.norms))
    upper = torch.triu(torch.stack(list(of_M)).to(ctx.wide))
    S = upper + torch.triu(upper, diagonal=1).mT
    direct = torch.stack([gradient.mT for gradient in of_U]).mT.to(ctx.wide)
    U = U.to(ctx.wide)
    G = torch.baddbmm(direct, U, S)
    along = torch.linalg.vecdot(U, G, dim=-2).unsqueeze(-2)
    return torch.addcmul(G, U, along, value=-1).div(norms).to(norms.dtype).contiguous().unbind()


def _differentiable_gradient(
    ctx: Any, used: list[int], of_U: Sequence[Tensor], of_M: Sequence[Tensor]
) -> Sequence[Tensor]:
    columns = [ctx.saved_tensors[i] for i in used]
    U, M = unit_factors(torch.stack(columns), ctx.dtype)
    outputs = [*U.unbind(), *M.to(ctx.dtype).unbind()]
    return torch.autograd.grad(outputs, columns, [*of_U, *of_M], create_graph=True)
