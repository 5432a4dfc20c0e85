"""Operations for recorded graphs: torch.export, torch.jit.trace, and ONNX, which has no triangular solver and no QR.

A recorded graph runs elsewhere, and is differentiated as it is written.
"""

from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]


def is_recording() -> bool:
    """Return whether operations are recorded into a graph, by torch.export, torch.onnx.export or torch.jit.trace."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def is_transformed() -> bool:
    """Return whether autograd functions are of no use: a graph is recorded, or a transform of torch.func is active."""
    if is_recording() or torch.compiler.is_compiling():
        return is_recording()
    transform: Any = _functorch.peek_interpreter_stack()
    return transform is not None


def is_wrapped(tensor: Tensor) -> bool:
    """Return whether a tensor is that of a transform of torch.func, without memory of its own."""
    return _functorch.is_functorch_wrapped_tensor(tensor)


def inverted_by_products(M: Tensor) -> Tensor:
    """Return the inverse of upper triangular matrices M (..., r, r) by ⌈log₂ r⌉ steps of matrix products.

    Inverses of diagonal blocks are joined in pairs: the inverse of (A B; 0 C) has the upper right block −A⁻¹ B C⁻¹.
    """
    r = len(M.unbind(dim=-1))  # a number also while torch.jit.trace records sizes
    index = torch.arange(r, device=M.device)
    inverse = torch.diag_embed(1 / M.diagonal(dim1=-2, dim2=-1))
    for size in (2**level for level in range((r - 1).bit_length())):
        block, pair = index // size, index // (2 * size)
        between = (pair == pair.unsqueeze(1)) & (block != block.unsqueeze(1))
        inverse = inverse - inverse @ (M * between) @ inverse
    return inverse


def orthonormalized(U: Tensor) -> Tensor:
    """Apply Gram–Schmidt to independent columns U (..., d, r), twice for float32 accuracy."""
    columns: list[Tensor] = []
    for u in U.split(1, dim=-1):
        if columns:
            Q = torch.cat(columns, dim=-1)
            for _ in range(2):
                u = u - Q @ (Q.mT @ u)
        columns.append(u / torch.linalg.vector_norm(u, dim=-2, keepdim=True))
    return torch.cat(columns, dim=-1)
