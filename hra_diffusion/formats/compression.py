"""Compression of an adapter: the smallest rotations of its layers are dropped, with a stated error."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from hra_diffusion.adapter.state import COLUMNS
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.chains import chain_of_columns
from hra_diffusion.formats.derived import Component, check_even_rank, check_output, plain_config, write_derived
from hra_diffusion.formats.folders import component_folders
from hra_diffusion.formats.peft import TEXT_PREFIX, read_adapter
from hra_diffusion.householder.planes import rotation_planes, squared_norms


@dataclass(frozen=True, kw_only=True)
class Compression:
    """The result of a compression."""

    ranks: tuple[int, int]
    """The smallest and the largest rank of a layer."""
    error: float
    """‖H − H'‖ / ‖H − I‖ over all layers: 0 for an adapter that is kept whole, 1 if nothing is kept."""
    parameters: tuple[int, int]
    """Numbers in the columns before, and after."""


@dataclass(frozen=True, kw_only=True)
class _Planes:
    """A layer's chain by planes."""

    columns: Tensor
    """(d, 2 m), a pair for each plane."""
    squares: Sequence[float]
    """Share of each plane in ‖H − I‖², largest first."""


def compress_adapter(
    adapter: str | Path, output: str | Path, *, rank: int | None = None, error: float | None = None
) -> Compression:
    """Write an adapter with fewer reflections: of each layer's rotation, the planes with the largest angles.

    Args:
        adapter: the adapter's folder, its run's, or a repository on the hub.
        output: the folder to write.
        rank: the same even rank for each layer. PEFT reads the adapter.
        error: limit of ‖H − H'‖ / ‖H − I‖ over all layers, in (0, 1): each layer gets the rank that it needs, in the
            setting `rank_pattern`, which PEFT's HRA lacks.

    Raises:
        AdapterFileError: there is no adapter, or it is damaged.
        ConfigError: neither or both of rank and error are given, one is out of its range, or the adapter has an odd
            rank.
        OutputError: the folder holds an adapter already, or cannot be written.
    """
    output = Path(output)
    check_output(output)
    if (rank is None) == (error is None):
        raise ConfigError("compress needs either --rank, such as 4, or --error, such as 0.1.")
    if rank is not None:
        check_even_rank(rank)
    if error is not None and not 0 < error < 1:
        raise ConfigError(f"--error is {error}: give a number between 0 and 1, such as 0.1.")
    parts = {name: read_adapter(folder) for name, folder in component_folders(adapter).items()}
    chains = {
        (name, key): chain_of_columns(columns, config)
        for name, (config, tensors) in parts.items()
        for key, columns in tensors.items()
        if key.endswith(COLUMNS)
    }
    widest = max((columns.shape[1] for columns in chains.values()), default=0)
    if rank is not None and rank >= widest:
        raise ConfigError(f"--rank is {rank}, and the adapter's is {widest}: give a lower one.")
    planes = _planes_of(chains)
    kept = dict.fromkeys(planes, (rank or 0) // 2) if error is None else _fewest(planes, error)
    components: dict[str, Component] = {}
    for name, (config, tensors) in parts.items():
        component_planes = {
            key: (planes[component, key], count) for (component, key), count in kept.items() if component == name
        }
        # A pattern without the prefix, which depends on the version of transformers, fits the end of both names.
        ranks = {
            key.removesuffix(COLUMNS).removeprefix(TEXT_PREFIX): 2 * count
            for key, (_, count) in component_planes.items()
        }
        components[name] = (
            plain_config(config, ranks),
            dict(tensors) | {key: _first(*pair) for key, pair in component_planes.items()},
        )
    write_derived(adapter, output, components)
    dropped = [square for layer, plane in planes.items() for square in plane.squares[kept[layer] :]]
    whole = sum(sum(plane.squares) for plane in planes.values())
    return Compression(
        ranks=(2 * min(kept.values()), 2 * max(kept.values())),
        error=math.sqrt(sum(dropped) / whole) if whole else 0.0,
        parameters=(
            sum(columns.numel() for columns in chains.values()),
            sum(2 * kept[layer] * len(columns) for layer, columns in chains.items()),
        ),
    )


def _planes_of(chains: Mapping[tuple[str, str], Tensor]) -> dict[tuple[str, str], _Planes]:
    """Return each layer's planes; layers of a shape are computed together."""
    groups: defaultdict[torch.Size, list[tuple[str, str]]] = defaultdict(list)
    for layer, columns in chains.items():
        groups[columns.shape].append(layer)
    planes: dict[tuple[str, str], _Planes] = {}
    for group in groups.values():
        columns, angles = rotation_planes(torch.stack([chains[layer] for layer in group]))
        squares = squared_norms(angles).tolist()
        planes |= {layer: _Planes(columns=columns[i], squares=squares[i]) for i, layer in enumerate(group)}
    return {layer: planes[layer] for layer in chains}


def _first(planes: _Planes, count: int) -> Tensor:
    """Return the float32 columns (d, 2 count) of the largest planes, filled up with zeros."""
    columns = planes.columns[:, : 2 * count].float()
    return pad(columns, (0, 2 * count - columns.shape[1]))


def _fewest(planes: Mapping[tuple[str, str], _Planes], error: float) -> dict[tuple[str, str], int]:
    """Return how many planes of each layer to keep, at least one: the fewest reflected numbers for an error.

    Planes are dropped by their share of ‖H − I‖² for each number of their two columns, the least first.
    """
    candidates = sorted(
        (square / len(plane.columns), layer, square) for layer, plane in planes.items() for square in plane.squares[1:]
    )
    budget = error**2 * sum(sum(plane.squares) for plane in planes.values())
    kept = {layer: max(len(plane.squares), 1) for layer, plane in planes.items()}
    for _, layer, square in candidates:
        if square > budget:
            break
        budget -= square
        kept[layer] -= 1
    return kept
