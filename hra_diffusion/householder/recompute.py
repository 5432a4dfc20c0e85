"""Inputs that need not be kept for the gradient, because the step that made them keeps all they were made of.

What the gradient of the columns takes from the input is the slim X qᵀ alone.

*A product* X = A ⊙ B, as a gated feed-forward layer ends in, is as wide as four times the model. Autograd's node of it
keeps both factors for its own gradient, which it computes after that of whatever the product went into: one pass over
memory makes the product again.

*Layer normalization* X = w ⊙ (A − 1 μᵀ) / σ + b, which stands before each attention and feed-forward layer: its node
keeps A and each row's μ and 1/σ. With p = q / σ,

    X qᵀ = w ⊙ (A − 1 μᵀ) pᵀ + b (q 1)ᵀ

so that X need not be made again as a whole. μ is taken off in A's precision first, lest a large one drown the rest in
rounding, and what that leaves of it afterwards: in half precision, μ itself is kept rounded.

Both hold behind a cast, too: on CUDA, autocasting normalizes in float32, and each layer makes its own copy of that.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hra_diffusion.householder.columns_first import correlate, transposed


def recompute(x: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return what computes q Xᵀ for a slim q (r, n) during the backward pass, if the node that made x keeps enough.

    Not where its tensors are packed away (gradient checkpointing, offloading): there, each may be asked for once.
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
    """Whether a tensor was saved through hooks; PyTorch has no public name for the question."""
    return saved.unpack_hook is not None


def _correlate_product(node: Any, q: Tensor) -> Tensor:
    X = transposed(node._saved_self * node._saved_other, images=q.dim() == 3)
    return correlate(q, X.to(q.dtype))


def _correlate_normalized(node: Any, q: Tensor) -> Tensor:
    wide = torch.promote_types(q.dtype, torch.float32)
    p = (q * node._saved_result2.flatten()).to(q.dtype)
    shifted = node._saved_input - node._saved_result1.to(node._saved_input.dtype)
    left = shifted.mean(dim=-1, dtype=wide).flatten()
    A = transposed(shifted, images=False).to(q.dtype)
    correlated = correlate(p, A).to(wide) - (p.to(wide) @ left).unsqueeze(1)
    if node._saved_weight is not None:
        correlated = correlated * node._saved_weight
    if node._saved_bias is not None:
        correlated = correlated + torch.outer(q.sum(dim=1, dtype=wide), node._saved_bias.to(wide))
    return correlated
