"""Recomputing inputs for the gradient from the tensors that autograd keeps for the operation before.

*Product* X = A ⊙ B, the end of a gated feed-forward layer, four times as wide as the model. Its autograd node keeps
both factors for its own gradient, which is computed later than that of the adapted layer. Recomputing the product costs
one pass over memory.

*Layer normalization* X = w ⊙ (A − μ) / σ + b, before each attention and feed-forward layer. Its autograd node keeps A,
and μ and 1/σ of each row, but not ε. Normalizing again with a tiny ε gives Z = w ⊙ (A − μ) / σ′, and

    X = Z σ′ / σ + b

A is normalized again, because in half precision the node keeps a rounded μ, and a large mean would dominate.

Both also work through a cast: on CUDA, autocasting normalizes in float32, and each layer casts the result again. Layers
with the same input (q, k and v of an attention) recompute it once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

_TINY = 1e-12
"""An ε that leaves rows without variance zero."""


class Product(NamedTuple):
    """Rows A ⊙ B."""

    a: Tensor
    b: Tensor

    def rows(self) -> Tensor:
        """Return the rows."""
        return self.a * self.b

    differentiable_rows = rows


class Normalized(NamedTuple):
    """Rows of a layer normalization, with the means and the reciprocal deviations of A's rows."""

    a: Tensor
    mean: Tensor
    rstd: Tensor
    weight: Tensor | None
    bias: Tensor | None

    def rows(self) -> Tensor:
        """Return the rows."""
        Z, _, rstd = torch.native_layer_norm(self.a, self.a.shape[-1:], self.weight, None, _TINY)
        ratio = (self.rstd / rstd).to(Z.dtype)
        return Z * ratio if self.bias is None else torch.addcmul(self.bias.to(Z.dtype), Z, ratio)

    def differentiable_rows(self) -> Tensor:
        """Return the rows, differentiably in A: also through the means and deviations."""
        mean = self.a.mean(dim=-1, keepdim=True)
        variance = self.a.var(dim=-1, keepdim=True, unbiased=False)
        rstd = (variance + (self.rstd**-2 - variance).detach()).rsqrt()
        rows = (self.a - mean) * rstd
        rows = rows if self.weight is None else rows * self.weight
        return rows if self.bias is None else rows + self.bias


class Recomputed:
    """The rows of an input that the backward passes of one or several layers recompute once.

    Args:
        source: returns the tensors to recompute them from, in the backward pass.
        sharing: what the layers with this input share.
    """

    def __init__(self, source: Callable[[], Product | Normalized], sharing: "_Sharing") -> None:
        self.source, self._sharing = source, sharing
        sharing.users += 1

    def rows(self) -> Tensor:
        """Return the rows; they are kept until the last of the layers has taken them."""
        sharing = self._sharing
        rows = self.source().rows() if sharing.rows is None else sharing.rows
        sharing.users -= 1
        sharing.rows = rows if sharing.users > 0 else None
        return rows


class _Sharing:
    def __init__(self) -> None:
        self.users = 0
        self.rows: Tensor | None = None


def recompute(x: Tensor) -> Recomputed | None:
    """Return what recomputes x in the backward pass; None if the node of x keeps too little.

    Also None with saved-tensor hooks (gradient checkpointing, offloading): they may unpack each tensor only once.
    """
    node: Any = None if torch.compiler.is_compiling() else x.grad_fn
    if node is None:
        return None
    if node.name() == "ToCopyBackward0":
        node = node.next_functions[0][0]
    if node.name() == "MulBackward0" and not _is_packed(node._raw_saved_self) and not _is_packed(node._raw_saved_other):
        has_both = node._saved_self is not None and node._saved_other is not None
        return _recomputed(node, _product) if has_both else None
    if node.name() == "NativeLayerNormBackward0" and not _is_packed(node._raw_saved_input):
        return _recomputed(node, _normalized) if len(node._saved_normalized_shape) == 1 else None
    return None


def _recomputed(node: Any, read: Callable[[Any], Product | Normalized]) -> Recomputed:
    return Recomputed(partial(read, node), node.metadata.setdefault("hra_diffusion", _Sharing()))


def _is_packed(saved: Any) -> bool:
    """Return whether a tensor may have been saved through hooks; before torch 2.13 nothing tells."""
    return getattr(saved, "unpack_hook", True) is not None


def _product(node: Any) -> Product:
    return Product(node._saved_self, node._saved_other)


def _normalized(node: Any) -> Normalized:
    saved = (node._saved_input, node._saved_result1, node._saved_result2, node._saved_weight, node._saved_bias)
    return Normalized(*saved)
