"""Initial columns of an adapter in a layer."""

import torch
from torch import Tensor

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.errors import ConfigError
from hra_diffusion.householder.gram_schmidt import orthonormal_columns
from hra_diffusion.householder.start import paired_columns, random_columns


def start_columns(
    layer: HRALayer, config: HRAConfig, r: int, on_meta: bool, generator: torch.Generator | None
) -> tuple[Tensor, Tensor | None]:
    """Return r initial columns of a layer and their anchor: together the identity, unless r is odd.

    Raises:
        ConfigError: apply_GS is set and r exceeds the layer's inputs.
    """
    d = layer.unfolded_size
    if config.apply_GS and r > d:
        raise ConfigError(f"At most {d} columns can be orthogonal in a layer of {d} inputs; apply_GS has r = {r}.")
    anchored = config.apply_GS and config.init_weights
    if on_meta or layer.columns.device.type == "meta":
        columns = torch.empty(d, r, device="meta")
        return columns, torch.empty_like(columns) if anchored else None
    start = paired_columns if config.init_weights and not config.apply_GS else random_columns
    columns = start(d, r, generator=generator)
    return columns, orthonormal_columns(columns) if anchored else None
