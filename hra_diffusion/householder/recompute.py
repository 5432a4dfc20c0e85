"""Recomputing inputs for the gradient from the tensors that autograd keeps for the operation before.

The gradient of the columns needs only the slim X qᵀ of the input X.

*Product* X = A ⊙ B, the end of a gated feed-forward layer, four times as wide as the model. Its autograd node keeps
both factors for its own gradient, which is computed later than that of the adapted layer. Recomputing the product costs
one pass over memory.

*Layer normalization* X = w ⊙ (A − 1 μᵀ) / σ + b, before each attention and feed-forward layer. Its autograd node keeps
A, and μ and 1/σ of each row. With p = q / σ,

    X qᵀ = w ⊙ (A − 1 μᵀ) pᵀ + b (q 1)ᵀ

and X is not recomputed as a whole. First μ is subtracted in A's precision, because rounding errors of a large mean
would dominate; then the remaining mean is subtracted, because in half precision the node keeps a rounded μ.

Both also work through a cast: on CUDA, autocasting normalizes in float32, and each layer casts the result again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hra_diffusion.householder.columns_first import correlate, transposed


class Product(NamedTuple):
    """Rows A ⊙ B."""

    a: Tensor
    b: Tensor

    def rows(self) -> Tensor:
        """Return the rows, differentiably."""
        return self.a * self.b

    def correlate(self, q: Tensor) -> Tensor:
        """Return q Xᵀ (r, d) for a slim q (r, n)."""
        return correlate(q, transposed(self.rows(), images=q.dim() == 3).to(q.dtype))


class Normalized(NamedTuple):
    """Rows of a layer normalization, with the means and the reciprocal deviations of A's rows."""

    a: Tensor
    mean: Tensor
    rstd: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def rows(self) -> Tensor:
        """Return the rows, differentiably: also through the means and deviations."""
        mean = self.a.mean(dim=-1, keepdim=True)
        variance = self.a.var(dim=-1, keepdim=True, unbiased=False)
        rstd = (variance + (self.rstd**-2 - variance).detach()).rsqrt()
        rows = (self.a - mean) * rstd
        rows = rows if self.weight is None else rows * self.weight
        return rows if self.bias is None else rows + self.bias

    def correlate(self, q: Tensor) -> Tensor:
        """Return q Xᵀ (r, d) for a slim q (r, n)."""
        wide = torch.promote_types(q.dtype, torch.float32)
        p = (q * self.rstd.flatten()).to(q.dtype)
        shifted = self.a - self.mean.to(self.a.dtype)
        remaining_mean = shifted.mean(dim=-1, dtype=wide).flatten()
        correlated = correlate(p, transposed(shifted, images=False).to(q.dtype)).to(wide)
        correlated = torch.addr(correlated, p.to(wide) @ remaining_mean, torch.ones_like(correlated[0]), alpha=-1)
        if self.weight is not None:
            correlated = correlated * self.weight
        if self.bias is not None:
            correlated = torch.addr(correlated, q.sum(dim=1, dtype=wide), self.bias.to(wide))
        return correlated


def recompute(x: Tensor) -> Callable[[], Product | Normalized] | None:
    """Return a function that finds the rows of x in the backward pass; None if the node of x keeps too little.

    Also None with saved-tensor hooks (gradient checkpointing, offloading): they may unpack each tensor only once.
    """
    node: Any = None if torch.compiler.is_compiling() else x.grad_fn
    if node is None:
        return None
    if node.name() == "ToCopyBackward0":
        node = node.next_functions[0][0]
    if node.name() == "MulBackward0" and not _is_packed(node._raw_saved_self) and not _is_packed(node._raw_saved_other):
        has_both = node._saved_self is not None and node._saved_other is not None
        return partial(_product, node) if has_both else None
    if node.name() == "NativeLayerNormBackward0" and not _is_packed(node._raw_saved_input):
        return partial(_normalized, node) if len(node._saved_normalized_shape) == 1 else None
    return None


def _is_packed(saved: Any) -> bool:
    """Return whether a tensor may have been saved through hooks; before torch 2.13 nothing tells."""
    return getattr(saved, "unpack_hook", True) is not None


def _product(node: Any) -> Product:
    return Product(node._saved_self, node._saved_other)


def _normalized(node: Any) -> Normalized:
    saved = (node._saved_input, node._saved_result1, node._saved_result2, node._saved_weight, node._saved_bias)
    return Normalized(*saved)
