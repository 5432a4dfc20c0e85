"""Comparison of two adapters' files, layer by layer, and search for similar adapters in a folder."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hra_diffusion.errors import AdapterFileError, HRAError
from hra_diffusion.formats.chains import read_chains
from hra_diffusion.formats.folders import adapters_within
from hra_diffusion.householder.commutator import principal_angles, relate


@dataclass(frozen=True, kw_only=True)
class LayerComparison:
    """Two chains of one layer."""

    name: str
    """Component and module."""
    commutator: float
    """‖[log H_a, log H_b]‖: 0 for chains that commute."""
    inner: float
    """⟨log H_a, log H_b⟩."""
    norms: tuple[float, float]
    """‖log H_a‖ and ‖log H_b‖."""
    angles: tuple[float, ...]
    """The principal angles of the columns' spans, in degrees, smallest first; empty where a chain has no columns."""

    @property
    def overlap(self) -> float:
        """The mean of cos² of the principal angles: 1 if one span contains the other, 0 if they are orthogonal."""
        squares = [math.cos(math.radians(angle)) ** 2 for angle in self.angles]
        return sum(squares) / len(squares) if squares else 0.0


@dataclass(frozen=True, kw_only=True)
class AdapterComparison:
    """Two adapters."""

    layers: tuple[LayerComparison, ...]
    """The layers that both adapt, by decreasing commutator."""
    only: tuple[int, int]
    """Number of layers that the first adapts alone, and the second."""
    norms: tuple[float, float]
    """‖log H‖ of each adapter, over all its layers."""

    @property
    def commutator(self) -> float:
        """‖[log H_a, log H_b]‖ over all layers: the root of the sum of squares."""
        return math.hypot(*(layer.commutator for layer in self.layers))

    @property
    def cosine(self) -> float:
        """Cosine similarity of the logarithms over all layers: 1 for equal adapters, 0 for unrelated ones."""
        product = self.norms[0] * self.norms[1]
        return sum(layer.inner for layer in self.layers) / product if product else 0.0

    @property
    def overlap(self) -> float:
        """The mean overlap of the spans over the layers that both adapt; 0 without such layers."""
        return sum(layer.overlap for layer in self.layers) / len(self.layers) if self.layers else 0.0

    @property
    def smallest_angle(self) -> float:
        """The smallest principal angle of all layers, in degrees; 90 without common layers."""
        return min((layer.angles[0] for layer in self.layers if layer.angles), default=90.0)


def compare_adapters(first: str | Path, second: str | Path) -> AdapterComparison:
    """Compare two adapters of one base model.

    Args:
        first: an adapter's folder, a run's output folder, or a repository on the hub.
        second: the same.

    Raises:
        AdapterFileError: there is no adapter, it is damaged, or the adapters are for layers of different widths.
        ConfigError: an adapter has an odd rank, and no logarithm.
    """
    return _compare(read_chains(first), read_chains(second), (str(first), str(second)))


def search_similar(adapter: str | Path, folder: Path) -> Iterator[tuple[Path, AdapterComparison | HRAError]]:
    """Compare an adapter with each adapter in the sub-folders of a folder.

    Yields:
        The sub-folder, and the comparison, or the error that prevents it, such as another base width. The adapter
        itself is left out.

    Raises:
        AdapterFileError: there is no adapter, or the folder does not exist or holds no others.
    """
    yield from compare_with(adapter, _adapters_beside(adapter, folder))


def compare_with(adapter: str | Path, others: Iterable[Path]) -> Iterator[tuple[Path, AdapterComparison | HRAError]]:
    """Compare an adapter, read once, with each of others; yields as `search_similar` does.

    Raises:
        AdapterFileError: the adapter does not exist or is damaged.
    """
    chains = read_chains(adapter)
    for path in others:
        try:
            yield path, _compare(chains, read_chains(path), (str(adapter), str(path)))
        except HRAError as error:
            yield path, error


def _adapters_beside(adapter: str | Path, folder: Path) -> Iterator[Path]:
    """Yield the sub-folders with other adapters; raise AdapterFileError for a folder without any."""
    if not folder.is_dir():
        raise AdapterFileError(f"There is no folder {folder} to search for adapters.")
    resolved = Path(adapter).resolve()
    others = [path for path in adapters_within(folder) if path.resolve() != resolved]
    if not others:
        raise AdapterFileError(f"{folder} has no sub-folder with another adapter.")
    yield from others


def _compare(a: Mapping[str, Tensor], b: Mapping[str, Tensor], names: tuple[str, str]) -> AdapterComparison:
    shared = sorted(a.keys() & b.keys())
    for layer in shared:
        if len(a[layer]) != len(b[layer]):
            raise AdapterFileError(
                f"{names[1]} is for another base model than {names[0]}: its layer {layer} has {len(b[layer])} inputs "
                f"instead of {len(a[layer])}."
            )
    groups: defaultdict[tuple[torch.Size, torch.Size], list[str]] = defaultdict(list)
    for layer in shared:
        groups[a[layer].shape, b[layer].shape].append(layer)
    layers: list[LayerComparison] = []
    for group in groups.values():
        relation = relate(torch.stack([a[layer] for layer in group]), torch.stack([b[layer] for layer in group]))
        for name, commutator, inner, one, other in zip(
            group, relation.commutator.tolist(), relation.inner.tolist(), *relation.norms.tolist(), strict=True
        ):
            angles = principal_angles(a[name], b[name]).rad2deg().tolist()
            layers.append(
                LayerComparison(name=name, commutator=commutator, inner=inner, norms=(one, other), angles=tuple(angles))
            )
    return AdapterComparison(
        layers=tuple(sorted(layers, key=lambda layer: -layer.commutator)),
        only=(len(a) - len(shared), len(b) - len(shared)),
        norms=(_norm(a), _norm(b)),
    )


def _norm(chains: Mapping[str, Tensor]) -> float:
    """Return ‖log H‖ over all layers."""
    groups: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
    for columns in chains.values():
        groups[columns.shape].append(columns.double())
    stacks = [torch.stack(group) for group in groups.values()]
    return math.hypot(*(relate(stack, stack[..., :0]).norms[0].norm().item() for stack in stacks))
