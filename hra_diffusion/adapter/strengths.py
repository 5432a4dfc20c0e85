"""Strengths of an adapter: one number for all layers, or others for the layers of some modules."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

DEFAULT = 1.0
"""The strength of layers without a strength of their own, as in diffusers."""


@dataclass(frozen=True)
class LayerStrengths:
    """The strengths of an adapter in the layers of a model.

    Attributes:
        by_module: pairs of a module's dotted name and the strength of its layers; an inner module comes before an
            outer one, and other layers have the strength 1.
    """

    by_module: tuple[tuple[str, float], ...]

    @cached_property
    def _table(self) -> dict[str, float]:
        return dict(self.by_module)

    def of(self, layer: str) -> float:
        """Return the strength in a layer by its dotted name."""
        name = layer
        while name:
            if name in self._table:
                return self._table[name]
            name = name.rpartition(".")[0]
        return DEFAULT

    @property
    def values(self) -> tuple[float, ...]:
        """All strengths."""
        return (*dict.fromkeys(strength for _, strength in self.by_module), DEFAULT)


Strength = float | LayerStrengths


def layer_strengths(by_module: Mapping[str, float]) -> Strength:
    """Return the strengths of modules by their dotted names; a number if all layers have the default."""
    if all(strength == DEFAULT for strength in by_module.values()):
        return DEFAULT
    return LayerStrengths(tuple(sorted(by_module.items())))


def strength_values(strength: Strength) -> tuple[float, ...]:
    """Return all numbers of a strength."""
    return strength.values if isinstance(strength, LayerStrengths) else (strength,)


def strength_in(strength: Strength, layer: str) -> float:
    """Return a strength in a layer by its dotted name."""
    return strength.of(layer) if isinstance(strength, LayerStrengths) else strength
