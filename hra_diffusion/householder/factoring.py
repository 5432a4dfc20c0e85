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
from torch._subclasses.fake_tensor import FakeTensor

from hra_diffusion.householder.chain import column_norms
from hra_diffusion.householder.columns_first import add, product, transposed
from hra_diffusion.householder.compact_wy import full_precision, invert_triangle, unit_factors
from hra_diffusion.householder.recording import is_transformed


class Factors(NamedTuple):
    """A chain of a training step, H = I − U T Uᵀ.

    Rounding T to half precision would make H less orthogonal, and casting z to float32 and s back would be two more
    operations each way. So T is kept in two parts, T ≈ T₁ + T₂, with a relative error of 2⁻¹⁷ in bfloat16 and 2⁻²² in
    float16. s = −(T₁ T₂) (z; z) is one product in half precision. On a GPU, where launches count, (z; z) is one product
    with the columns of U twice; on a CPU, z is copied, which costs less than a product of twice the width.

    Attributes:
        U: the unit columns (d, r), which carry the gradient.
        M: T⁻¹ (r, r), which carries the gradient.
        T: the triangle (r, r) in float32 or wider, a constant.
        projection: the columns of U once or twice (d, r or 2 r), a constant.
        forward: the parts of −T (r, r or 2 r), in the dtype of the rows, a constant.
        backward: the parts of −Tᵀ.
    """

    U: Tensor
    M: Tensor
    T: Tensor
    projection: Tensor
    forward: Tensor
    backward: Tensor

    def apply_in_parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return H x for each row of x (*, d), and the slim s = −T Uᵀ X (r, n), or (batch, r, n) for images."""
        X = transposed(x, images=x.dim() == 3 and x.stride(-1) != 1)
        s = coefficients(self.forward, self.projection, X)
        return add(X, self.U, s).mT.view(x.shape), s


def coefficients(parts: Tensor, projection: Tensor, X: Tensor) -> Tensor:
    """Return the slim −T Uᵀ X (r, n), or (batch, r, n) for images, for the parts of −T."""
    z = product(projection.mT, X)
    return product(parts, torch.cat([z, z], dim=-2) if _is_copied(projection) else z)


def _is_copied(columns: Tensor) -> bool:
    """Return whether the slim product is copied for the two parts of T: in half precision on a CPU.

    Tensors without data stand for those of a GPU, whose launches and memory are counted with them.
    """
    is_half = columns.dtype.itemsize < torch.float32.itemsize
    return is_half and columns.device.type == "cpu" and not isinstance(columns, FakeTensor)


def factor_chains(columns: Sequence[Tensor], dtype: torch.dtype) -> list[Factors]:
    """Factor chains of one shape, dtype and device, differentiably in their columns (d, r).

    Recorded graphs and transforms of torch.func differentiate all factors as they are written.

    Args:
        columns: the columns of each chain, of any length; zero columns are identities.
        dtype: the dtype of the rows that the chains are applied to.
    """
    with full_precision(columns[0].device):
        if is_transformed():
            U, M = unit_factors(torch.stack(list(columns)), dtype)
            constants, carriers = _constants(U, M), (U.unbind(), M.unbind())
        elif torch.compiler.is_compiling():
            U, M = unit_factors(torch.stack(list(columns)), dtype)
            constants = [constant.clone() for constant in _constants(U.detach(), M.detach())]  # no views of one another
            carriers = (U.unbind(), M.to(dtype).unbind())
        else:
            stacked: list[Tensor] = []
            outputs = _FactorChains.apply(dtype, stacked, *columns)
            with torch.no_grad():
                constants = _constants(*stacked)
            carriers = (outputs[: len(columns)], outputs[len(columns) :])
        return [Factors(*chain) for chain in zip(*carriers, *(c.unbind() for c in constants), strict=True)]


def _constants(U: Tensor, M: Tensor) -> tuple[Tensor, ...]:
    """Return T, the projection, and the parts of −T and of −Tᵀ."""
    T = invert_triangle(M)
    if U.dtype.itemsize >= torch.float32.itemsize:
        return T, U, -T, -T.mT
    first = (-T).to(U.dtype)
    second = (-T - first).to(U.dtype)
    projection = U if _is_copied(U) else torch.cat([U.mT, U.mT], dim=-2).mT
    return T, projection, torch.cat([first, second], dim=-1), torch.cat([first.mT, second.mT], dim=-1)


class _FactorChains(torch.autograd.Function):
    """U and M of each chain. Their values are kept as attributes: several backward passes may use them."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, stacked: list[Tensor], *columns: Tensor) -> tuple[Tensor, ...]:
        together = torch.stack(columns)
        U, M = unit_factors(together, dtype)
        stacked += U, M
        ctx.dtype, ctx.U, ctx.norms, ctx.wide = dtype, U.detach(), column_norms(together), M.dtype
        ctx.save_for_backward(*columns)
        ctx.set_materialize_grads(False)
        return *U.unbind(), *M.to(dtype).unbind()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = len(grad_outputs) // 2
        gradients = list(zip(grad_outputs[:count], grad_outputs[count:], strict=True))
        used = [i for i, (of_U, _) in enumerate(gradients) if of_U is not None and ctx.needs_input_grad[2 + i]]
        results: list[Tensor | None] = [None] * count
        if used:
            of_U, of_M = zip(*(gradients[i] for i in used), strict=True)
            gradient = _differentiable_gradient if torch.is_grad_enabled() else _stacked_gradient
            with full_precision(ctx.U.device):
                for i, result in zip(used, gradient(ctx, used, of_U, of_M), strict=True):
                    results[i] = result
        return None, None, *results


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
