"""Orthogonal columns, by Gram–Schmidt (λ = ∞ in the paper) or by a penalty.

With orthonormal columns Q the reflections commute and H = I − 2 Q Qᵀ, which is never the identity: ‖H − I‖_F = 2 √r.
With an *anchor* Q₀, the frozen initial Q, the chain starts at the identity; it is a plain chain of 2r reflections:

    H = (I − 2 Q₀ Q₀ᵀ)(I − 2 Q Qᵀ)

Source: arXiv 2405.17484, section 3.3 and its regularizer; the anchor is this project's.
"""

import torch
from torch import Tensor

from hra_diffusion.householder.chain import unit_columns
from hra_diffusion.householder.recording import is_recording, orthonormalized

_WITHOUT_QR = ("mps",)


def orthonormal_columns(U: Tensor) -> Tensor:
    """Apply Gram–Schmidt to independent columns U (..., d, r), r ≤ d; the leading spans stay the same.

    Computed on the CPU for a device without a QR factorization (MPS); gradients flow back to the device.
    """
    if is_recording():
        return orthonormalized(U)
    factored = U.cpu() if U.device.type in _WITHOUT_QR else U
    return torch.linalg.qr(factored).Q.to(U.device)


def orthogonality_penalty(U: Tensor) -> Tensor:
    """Return ‖I − ÛᵀÛ‖_F for chains U (..., d, r): 0 for orthogonal columns, at most √(r (r − 1)).

    Zero columns are ignored.
    """
    unit = unit_columns(U)
    gram = unit.mT @ unit
    return torch.linalg.matrix_norm(gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1)))
