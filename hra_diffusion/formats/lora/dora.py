"""The exact DoRA of an adapter with magnitudes.

    diag(m) W H = M ⊙ (W + B A) / ‖W + B A‖,   B A = W H − W,   M = m ⊙ ‖W‖

‖·‖ are norms of rows (of filters, for a convolution), and W + B A = W H has those of W. So tools that divide by the
norms of W + B A (PEFT, diffusers) and those that divide by the norms of W (ComfyUI) compute the same weights.

                kohya                          diffusers                         peft
    magnitude   .dora_scale                    .lora_magnitude_vector.weight     .lora_magnitude_vector
    shape       (out, 1) or (out, 1, 1, 1)     (out,) or (1, out, 1, 1)          the same

diffusers ignores `dora_scale`, and reads a DoRA in its own layout only.

Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024, arXiv 2402.09353.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.errors import ConfigError

KOHYA_MAGNITUDE: Final = ".dora_scale"
PEFT_MAGNITUDE: Final = ".lora_magnitude_vector"


def dora_magnitude(layer: HRALayer, W: Tensor, component: str, module: str) -> Tensor | None:
    """Return the magnitude M (out,) of a layer's active adapters, in float64; None if none of them has magnitudes.

    Args:
        layer: the layer.
        W: its weight (out, d) without adapters, in float64 on the CPU.
        component: name of the pipeline's component, for the error.
        module: name of the module in it, for the error.

    Raises:
        ConfigError: a row of the weight is zero: a DoRA would divide by its norm.
    """
    m = layer.magnitudes.factors(layer.mixture)
    if m is None:
        return None
    norms = torch.linalg.vector_norm(W, dim=1)
    if not norms.all():
        raise ConfigError(
            f"{module} of the {component} has rows of zeros, for which no DoRA is defined: merge the adapter instead."
        )
    return m.detach().cpu().double() * norms


def kohya_magnitude(M: Tensor, B: Tensor) -> Tensor:
    """Return a magnitude (out,) in the shape of kohya's `dora_scale`, for a widening weight B."""
    return M.view(-1, *(1,) * (B.dim() - 1))


def peft_magnitude(M: Tensor, B: Tensor) -> Tensor:
    """Return a magnitude (out,) in the shape of PEFT's `lora_magnitude_vector`, for a widening weight B."""
    return M if B.dim() == 2 else M.view(1, -1, 1, 1)


def fused_magnitude(name: str, magnitudes: Sequence[Tensor | None]) -> Tensor | None:
    """Return the magnitude of a layer of the original code, from those of its parts in the order of its rows.

    Args:
        name: the layer's name, for the error.
        magnitudes: the magnitude of each part; None for a part without an update.

    Raises:
        ConfigError: some parts have a magnitude, and others have none.
    """
    present = [M for M in magnitudes if M is not None]
    if present and len(present) < len(magnitudes):
        raise ConfigError(
            f"kohya's layout joins several layers in {name}, and the adapter has magnitudes for some of them only: use "
            "--layout diffusers."
        )
    return torch.cat(present) if present else None
