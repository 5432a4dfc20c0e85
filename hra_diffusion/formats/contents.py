"""Contents of an adapter's files, layer by layer, with the rotation angle of every layer."""

import math
from dataclasses import dataclass
from pathlib import Path

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.state import COLUMNS
from hra_diffusion.formats.chains import chain_of_columns
from hra_diffusion.formats.folders import component_folders
from hra_diffusion.formats.peft import read_adapter
from hra_diffusion.householder.geodesic import rotation_angles


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of an adapter."""

    name: str
    shape: tuple[int, ...]
    """(d, r) of its columns."""
    angle: float
    """Its largest rotation angle, in degrees."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """One component of an adapter."""

    name: str
    config: HRAConfig
    layers: list[Layer]
    parameters: int
    """Number of values in the adapter's file: columns and other trained parameters."""


def read_components(folder: Path) -> list[Component]:
    """Read the adapter of an adapter's folder, a run's output folder, or the folder of one component.

    Raises:
        AdapterFileError: there is no adapter, or it is damaged.
    """
    parts = component_folders(folder)
    return [_read_component(name or part.resolve().name, part) for name, part in parts.items()]


def _read_component(name: str, part: Path) -> Component:
    config, tensors = read_adapter(part)
    layers = [
        Layer(
            name=name.removesuffix(COLUMNS),
            shape=tuple(columns.shape),
            angle=math.degrees(rotation_angles(chain_of_columns(columns, config)).max().item()),
        )
        for name, columns in tensors.items()
        if name.endswith(COLUMNS)
    ]
    parameters = sum(tensor.numel() for tensor in tensors.values())
    return Component(name=name, config=config, layers=layers, parameters=parameters)
