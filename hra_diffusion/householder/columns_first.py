"""Products with transposed rows: x as X (d, n), or (batch, d, n) for images with channels first.

The slim factor of each product is then on the left, where matrix libraries are several times faster, and images are
not copied.
"""

import torch
from torch import Tensor


def transposed(x: Tensor, images: bool) -> Tensor:
    """Return rows x (*, d) as (d, n), or images (batch, n, d) as (batch, d, n)."""
    return x.mT if images else x.reshape(-1, x.shape[-1]).mT


def product(A: Tensor, X: Tensor) -> Tensor:
    """Return A X for a slim A (r, d)."""
    return A @ X if X.dim() == 2 else torch.bmm(A.expand(X.shape[0], -1, -1), X)


def add(X: Tensor, U: Tensor, s: Tensor) -> Tensor:
    """Return X + U s, in the memory format of X."""
    if X.dim() == 2:
        return torch.addmm(X.mT, s.mT, U.mT).mT
    return torch.baddbmm(X, U.expand(X.shape[0], -1, -1), s)


def correlate(s: Tensor, X: Tensor) -> Tensor:
    """Return s Xᵀ (r, d), summed over the batch."""
    return s @ X.mT if X.dim() == 2 else torch.bmm(s, X.mT).sum(dim=0)
