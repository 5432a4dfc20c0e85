"""Initial columns of an adapter.

*Pairs*: r/2 random directions, each twice. Neighboring equal reflections cancel, so that H = I, but the gradient is not
zero. With an odd r, det H = −1, and training cannot start at the identity.

*Length*: H depends on directions only, but an optimizer's step is relative to ‖u‖. With ‖u‖ = √d, an Adam step of size
lr moves each of the d entries by about lr, and rotates the column by about lr *radians* for any d and r. The gradient
is orthogonal to u: n steps increase its length to about √(1 + n lr²) times only.

Source: arXiv 2405.17484, section 3.3 for the pairs; the length is this project's.
"""

import math

import torch
from torch import Tensor

from hra_diffusion.householder.chain import unit_columns


def random_columns(d: int, r: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Sample r directions, uniform on the sphere, as float32 columns (d, r) of length √d."""
    device = generator.device if generator else "cpu"
    return unit_columns(torch.randn(d, r, generator=generator, dtype=torch.float32, device=device)) * math.sqrt(d)


def paired_columns(d: int, r: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Sample r/2 directions, each twice in a row: a chain (d, r) equal to the identity.

    For an odd r, the last column is single, and the chain is one random reflection.
    """
    return random_columns(d, (r + 1) // 2, generator=generator).repeat_interleave(2, dim=1)[:, :r]
