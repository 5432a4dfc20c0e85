"""The nearest chain to an arbitrary low-rank update of a weight.

    min over orthogonal H of ‖W H − (W + B A)‖_F,   H = I on the complement of a subspace

With Q an orthonormal basis of the subspace, which contains the rows of A, H = I + Q (K − I) Qᵀ. This leaves an
orthogonal Procrustes problem of the subspace's dimension,

    min over K of ‖M K − N‖_F,   M = W Q,   N = M + B A Q

solved by the orthogonal polar factor of MᵀN. If its determinant is −1, the last singular vector changes its sign: only
a rotation K gives H a strength.

The subspace is span(Aᵀ, WᵀB), of 2 r dimensions. To first order H = I + S with a skew S, and the best S mixes the
inputs of the update, Aᵀ, with the inputs that W maps to its outputs, WᵀB. If W is a multiple of an isometry, no larger
subspace is better: WᵀW + WᵀB A is then a multiple of the identity on the complement, and its polar factor the identity.

Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966; for rotations, Kabsch, 1976.
"""

import torch
from torch import Tensor

from hra_diffusion.householder.geodesic import reflections_of

# Directions undetermined by W and the update are rotated as little as possible.
_TOWARDS_IDENTITY = 1e-13


@torch.no_grad()
def nearest_chain(W: Tensor, B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Return the chain with W H nearest to W + B A, and the residual.

    Computed in float64 on the CPU.

    Args:
        W: the weight (out, d).
        B: the left factor (out, r) of the update.
        A: the right factor (r, d).

    Returns:
        Columns (d, min(d, 2 r)) of unit or zero length, with an even number of nonzero ones, and the residual
        ‖W H − W − B A‖_F.
    """
    W, B, A = (tensor.cpu().double() for tensor in (W, B, A))
    return nearest_chain_within(torch.linalg.qr(torch.cat([A.mT, W.mT @ B], dim=1)).Q, W, B, A)


@torch.no_grad()
def nearest_chain_within(Q: Tensor, W: Tensor, B: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Return the chain with W H nearest to W + B A that is the identity outside of a subspace, and the residual.

    Args:
        Q: an orthonormal basis (d, k) of the subspace, which contains the rows of A.
        W: the weight (out, d); all of them in float64 on the CPU.
        B: the left factor (out, r) of the update.
        A: the right factor (r, d).

    Returns:
        Columns (d, k) of unit or zero length, with an even number of nonzero ones, and the residual
        ‖W H − W − B A‖_F.
    """
    M = W @ Q
    N = M + B @ (A @ Q)
    S = M.mT @ N
    S += _TOWARDS_IDENTITY * torch.linalg.matrix_norm(S) * torch.eye(len(S), dtype=S.dtype)
    X, _, Yh = torch.linalg.svd(S)
    X[:, -1] *= torch.linalg.det(X @ Yh).sign()
    K = X @ Yh
    return Q @ reflections_of(K), torch.linalg.matrix_norm(M @ K - N)
