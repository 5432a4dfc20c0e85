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
from typing import Any

import torch
from torch import Tensor

from hra_diffusion.householder.columns_first import correlate, transposed


def recompute(x: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return a function from a slim q (r, n) to q Xᵀ for the backward pass; None if the node of x keeps too little.

    Also None with saved-tensor hooks (gradient checkpointing, offloading): they may unpack each tensor only once.
    """
    node: Any = None if torch.compiler.is_compiling() else x.grad_fn
    if node is None:
        return None
    if node.name() == "ToCopyBackward0":
        node = node.next_functions[0][0]
    if node.name() == "MulBackward0" and not _is_packed(node._raw_saved_self) and not _is_packed(node._raw_saved_other):
        has_both = node._saved_self is not None and node._saved_other is not None
        return partial(_correlate_product, node) if has_both else None
    if node.name() == "NativeLayerNormBackward0" and not _is_packed(node._raw_saved_input):
        return partial(_correlate_normalized, node) if len(node._saved_normalized_shape) == 1 else None
    return None


def _is_packed(saved: Any) -> bool:
    """Return whether a tensor may have been saved through hooks; before torch 2.13 nothing tells."""
    return getattr(saved, "unpack_hook", True) is not None


def _correlate_product(node: Any, q: Tensor) -> Tensor:
    X = transposed(node._saved_self * node._saved_other, images=q.dim() == 3)
    return correlate(q, X.to(q.dtype))


def _correlate_normalized(node: Any, q: Tensor) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    p = (q * node._saved_result2.flatten()).to(q.dtype)
    shifted = node._saved_input - node._saved_result1.to(node._saved_input.dtype)
    remaining_mean = shifted.mean(dim=-1, dtype=wide).flatten()
    A = transposed(shifted, images=False).to(q.dtype)
    correlated = correlate(p, A).to(wide) - (p.to(wide) @ remaining_mean).unsqueeze(1)
    if node._saved_weight is not None:
        correlated = correlated * node._saved_weight
    if node._saved_bias is not None:
        correlated = correlated + torch.outer(q.sum(dim=1, dtype=wide), node._saved_bias.to(wide))
    return correlated
