"""The update of a weight by an adapter, as a LoRA: W H − W = B A."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.formats.lora.dora import dora_magnitude
from hra_diffusion.householder.compact_wy import orthonormal_delta


@dataclass(frozen=True, kw_only=True)
class Update:
    """An adapter's update of one layer's weight, as a LoRA.

    Attributes:
        component: name of the pipeline's component.
        module: name of the module in it.
        A: the narrowing weight (r, d), or (r, in, kh, kw) for a convolution.
        B: the widening weight (out, r), or (out, r, 1, 1).
        magnitude: the magnitude (out,) of a DoRA; None for a LoRA.
    """

    component: str
    module: str
    A: Tensor
    B: Tensor
    magnitude: Tensor | None = None


@torch.no_grad()
def update_of(layer: HRALayer, component: str, module: str) -> Update | None:
    """Compute the update of a layer by its active adapters, in float64; None without active adapters.

    Raises:
        ConfigError: the adapters have magnitudes, and a row of the weight is zero.
        MergeError: the layer's weight is quantized or offloaded.
    """
    columns = layer.mixed_columns()
    if columns is None:
        return None
    weight = layer.original_weight()
    wide = layer.unfold_weight(weight).cpu().double()
    B, A = orthonormal_delta(columns.cpu().double(), wide)
    if weight.dim() == 4:
        A, B = layer.fold_weight(A), B[..., None, None]
    magnitude = dora_magnitude(layer, wide, component, module)
    return Update(component=component, module=module, A=A, B=B, magnitude=magnitude)


def with_rank(update: Update, rank: int) -> Update:
    """Pad an update with zeros to a rank."""
    missing, spatial = rank - len(update.A), update.A.dim() - 2
    A = pad(update.A, (0, 0) * (1 + spatial) + (0, missing))
    B = pad(update.B, (0, 0) * spatial + (0, missing))
    return replace(update, A=A, B=B)
