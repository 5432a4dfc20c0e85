"""``hra-diffusion compare``: how similar two adapters are, and whether they commute, from their files alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.errors import ConfigError, HRAError
from hra_diffusion.resources import find_data

if TYPE_CHECKING:
    from hra_diffusion.formats.comparison import AdapterComparison


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Print how similar two adapters are and whether they commute: commutator norm, principal angles, cosine."""

    adapters: tyro.conf.Positional[tuple[str, ...]]
    """Two adapters, or one with --search_dir: folders, runs' output folders, or repositories on the hub."""
    search_dir: Path | None = None
    """Folder of adapters to compare with the first one; the most similar are listed first."""
    layers: bool = True
    """List the layers, by decreasing commutator norm."""


def main(arguments: Sequence[str]) -> None:
    """Print the comparison."""
    config = parse_settings(CompareConfig, arguments, prog="hra-diffusion compare")
    expected = 1 if config.search_dir else 2
    if len(config.adapters) != expected:
        raise ConfigError(
            "compare takes two adapters, or one with --search_dir for a folder of others, and not "
            f"{len(config.adapters)}."
        )
    adapters = [find_data(adapter) for adapter in config.adapters]
    lines = _search(adapters[0], config.search_dir) if config.search_dir else _pair(adapters[0], adapters[1], config)
    print("\n".join(lines))


def _pair(first: str, second: str, config: CompareConfig) -> Iterator[str]:
    from hra_diffusion.formats.comparison import compare_adapters  # imports torch: not for --help

    comparison = compare_adapters(first, second)
    yield from _bases(first, second)
    yield from _slots(first, second)
    yield from _magnitudes(first, second)
    yield from _summary(comparison)
    if not config.layers or not comparison.layers:
        return
    yield "  commutator, smallest principal angle, overlap of each layer:"
    for layer in comparison.layers:
        smallest = f"{layer.angles[0]:5.1f}°" if layer.angles else "     –"
        yield f"  {layer.commutator:8.4f}  {smallest}  {layer.overlap:5.2f}  {layer.name}"


def _summary(comparison: "AdapterComparison") -> Iterator[str]:
    layers, (first, second) = comparison.layers, comparison.only
    yield f"layers           {len(layers)} in both, {first} in the first adapter alone, {second} in the second"
    yield f"cosine           {comparison.cosine:.3f}  (1: the same rotation, 0: unrelated, −1: the inverse)"
    one, other = comparison.norms
    yield f"commutator norm  {comparison.commutator:.4f}  (0: the order has no effect; norms {one:.3f} and {other:.3f})"
    yield f"principal angle  {comparison.smallest_angle:.1f}° the smallest, overlap {comparison.overlap:.3f}"


def _magnitudes(*adapters: str) -> Iterator[str]:
    """Yield the adapters with magnitudes, which are no rotation."""
    from hra_diffusion.formats.chains import has_magnitudes

    if owners := [adapter for adapter in adapters if has_magnitudes(adapter)]:
        yield f"magnitudes       not compared, the rotations alone: {' and '.join(owners)}"


def _slots(first: str, second: str) -> Iterator[str]:
    """Yield what the slots of two adapters mean for them, if both have one."""
    from hra_diffusion.formats.chains import read_slot
    from hra_diffusion.householder.subspaces import Slot

    texts = [read_slot(adapter) for adapter in (first, second)]
    slots = [Slot.parse(text) for text in texts if text]
    if len(slots) == 2:
        meaning = "overlap" if slots[0].overlaps(slots[1]) else "are disjoint: the updates of weights add exactly"
        yield f"slots            {slots[0]} and {slots[1]} {meaning}"


def _bases(first: str, second: str) -> Iterator[str]:
    """Yield a warning if the adapters record different base models."""
    from hra_diffusion.formats.folders import base_model, public_name

    names = [base_model(adapter) for adapter in (first, second)]
    if all(names) and len(set(names)) == 2:
        yield f"base models      {' and '.join(public_name(str(name)) for name in names)} differ: compare with care"


def _search(adapter: str, folder: Path) -> Iterator[str]:
    """Yield the adapters of a folder, the most similar first, incomparable ones last."""
    from hra_diffusion.formats.comparison import search_similar

    results = list(search_similar(adapter, folder))
    comparable = [(path, result) for path, result in results if not isinstance(result, HRAError)]
    yield from _magnitudes(adapter, *(str(path) for path, _ in comparable))
    yield "cosine, commutator norm, smallest principal angle:"
    for path, result in sorted(comparable, key=lambda item: -item[1].cosine):
        yield f"  {result.cosine:6.3f}  {result.commutator:8.4f}  {result.smallest_angle:5.1f}°  {path.name}"
    for path, result in results:
        if isinstance(result, HRAError):
            yield f"  not comparable: {path.name}: {result}"
