"""Where training starts.

*Paired start*: r/2 random directions, each twice. Neighboring equal reflections cancel, so H = I, and yet the gradient
is not zero. An odd r has det H = −1 and cannot start at the identity.

*Length of the columns*: H depends on directions only, but an optimizer's step is measured against ‖u‖. With ‖u‖ = √d an
Adam step of size lr moves each of the d entries by about lr and so turns the column by about lr *radians*, whatever d
and r are; the gradient being orthogonal to u, n steps stretch it to about √(1 + n lr²) of its length only.

Source: arXiv 2405.17484, section 3.3 for the pairs; the length is this project's.
"""

import math

import torch
from torch import Tensor

from hra_diffusion.householder.chain import unit_columns


def random_columns(d: int, r: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Return r independent directions, uniform on the sphere, as float32 columns (d, r) of length √d."""
    device = generator.device if generator else "cpu"
    return unit_columns(torch.randn(d, r, generator=generator, dtype=torch.float32, device=device)) * math.sqrt(d)


def paired_columns(d: int, r: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Return r/2 random directions, each twice in a row: a chain (d, r) that equals the identity.

    For an odd r the last column stays single and the chain is one random reflection.
    """
    return random_columns(d, (r + 1) // 2, generator=generator).repeat_interleave(2, dim=1)[:, :r]
