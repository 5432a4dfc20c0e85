"""Adapters of the library that are similar to one of them, by their files alone."""

from dataclasses import dataclass

from hra_diffusion.errors import HRAError
from hra_diffusion.formats.comparison import compare_with
from hra_diffusion.studio.engine.adapters.library import Library


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """Another adapter of the library."""

    name: str
    cosine: float
    """1 for the same rotation, 0 for unrelated ones, −1 for the inverse."""
    commutator: float
    """0 if the order of both has no effect."""
    angle: float
    """The smallest principal angle of the columns' spans, in degrees."""


def similar_adapters(library: Library, name: str) -> tuple[list[Similarity], list[str]]:
    """Compare an adapter with the others of the library.

    Returns:
        The comparable ones, the most similar first, and the names of those of other base widths or odd ranks.

    Raises:
        ConfigError: the name is unknown.
        AdapterFileError: the adapter is damaged.
    """
    reference = library.entry(name)
    similarities: list[Similarity] = []
    others: list[str] = []
    folders = [entry.folder for entry in library.entries() if entry.name != reference.name]
    for folder, comparison in compare_with(reference.folder, folders):
        if isinstance(comparison, HRAError) or not comparison.layers:
            others.append(folder.name)
            continue
        similarities.append(
            Similarity(
                name=folder.name,
                cosine=comparison.cosine,
                commutator=comparison.commutator,
                angle=comparison.smallest_angle,
            )
        )
    return sorted(similarities, key=lambda similarity: -similarity.cosine), others
