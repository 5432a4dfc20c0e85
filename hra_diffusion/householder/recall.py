"""An input that need not be kept for the gradient, because the step that made it keeps all it was made of.

A gated feed-forward layer ends in a product a · b, as wide as four times the model. Autograd's node of the product
keeps both factors for its own gradient, which it computes after that of whatever the product went into. So the product
can be had again, by one pass over memory, instead of being kept as well.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor


def product_of(x: Tensor) -> Callable[[], Tensor] | None:
    """Return what computes x again during the backward pass, if x is a product whose node keeps both factors.

    Not where saved tensors are packed away (gradient checkpointing, offloading): there, each may be asked for once.
    """
    node = None if torch.compiler.is_compiling() else x.grad_fn
    if node is None or node.name() != "MulBackward0" or _are_packed():
        return None
    factors: Any = node
    if factors._saved_self is None or factors._saved_other is None:
        return None
    return partial(_multiply, factors)


def _are_packed() -> bool:
    """Whether the present tensors are saved through hooks; PyTorch has no public name for the question."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None  # pyright: ignore


def _multiply(node: Any) -> Tensor:
    return node._saved_self * node._saved_other
