"""Initial columns of an adapter.

*Pairs*: r/2 random directions, each twice. Neighboring equal reflections cancel, so that H = I, but the gradient is not
zero. With an odd r, det H = −1, and training cannot start at the identity.

*Length*: H depends on directions only, but an optimizer's step is relative to ‖u‖. With ‖u‖ = √d, an Adam step of size
lr moves each of the d entries by about lr, and rotates the column by about lr *radians* for any d and r. The gradient
is orthogonal to u: n steps increase its length to about √(1 + n lr²) times only.

*Directions from a gradient*: the change of a loss L for H = exp(S), with a skew S, is ⟨K, S⟩ to first order,

    K = ½ (A − Aᵀ),   A = Wᵀ ∂L/∂W = Σ x̄ xᵀ

over all rows x of the layer's input, with their gradients x̄. A pair (u, u) can turn u towards K u, which is orthogonal
to u. This decreases L by at most ‖K u‖ per radian: most for u in the plane of K with the largest singular value. So
each pair starts in one of the r/2 largest planes. They come from slim products, in two passes over the same rows: a
basis Q of K Ω with random Ω (d, k), then K Q, and the planes of Qᵀ K Q.

Source: arXiv 2405.17484, section 3.3 for the pairs; Halko, Martinsson and Tropp, "Finding Structure with Randomness",
2011, for the basis; the length and the directions are this project's.
"""

import math

import torch
from torch import Tensor

from hra_diffusion.householder.chain import unit_columns


def random_columns(d: int, r: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Sample r directions, uniform on the sphere, as float32 columns (d, r) of length √d."""
    device = generator.device if generator else "cpu"
    return _on_sphere(torch.randn(d, r, generator=generator, dtype=torch.float32, device=device))


def paired_columns(d: int, r: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Sample r/2 directions, each twice in a row: a chain (d, r) equal to the identity.

    For an odd r, the last column is single, and the chain is one random reflection.
    """
    return _paired(random_columns(d, (r + 1) // 2, generator=generator), r)


def skew_product(x: Tensor, x_bar: Tensor, Q: Tensor) -> Tensor:
    """Return K Q (d, k) for rows x (n, d), their gradients x̄ (n, d), and Q (d, k), in Q's dtype."""
    x, x_bar = x.to(Q.dtype), x_bar.to(Q.dtype)
    return (x_bar.mT @ (x @ Q) - x.mT @ (x_bar @ Q)) / 2


def largest_planes(Q: Tensor, KQ: Tensor, count: int) -> Tensor:
    """Return a unit direction (d, count) in each of the largest planes of a skew K, within the span of Q.

    Args:
        Q: an orthonormal basis (d, k).
        KQ: the product K Q (d, k).
        count: number of planes, at most k/2.
    """
    B = Q.mT.double() @ KQ.double()
    B = (B - B.mT) / 2
    vectors = torch.linalg.eigh(1j * B).eigenvectors[:, -count:].flip(1)  # by decreasing angular rate
    return unit_columns(Q.double() @ vectors.real).to(Q.dtype)


def columns_along(directions: Tensor, r: int) -> Tensor:
    """Return directions (d, ⌈r/2⌉), each twice in a row, as columns (d, r) of length √d: see `paired_columns`."""
    return _paired(_on_sphere(directions), r)


def _on_sphere(directions: Tensor) -> Tensor:
    """Return directions (d, k) as columns of length √d."""
    return unit_columns(directions) * math.sqrt(len(directions))


def _paired(columns: Tensor, r: int) -> Tensor:
    """Return columns (d, ⌈r/2⌉), each twice in a row, as r columns."""
    return columns.repeat_interleave(2, dim=1)[:, :r]
