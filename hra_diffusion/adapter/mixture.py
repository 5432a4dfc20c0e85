"""Mixtures of adapters: a product of blends, each the geodesic mean of adapters with strengths.

((("a", 1.0),), (("b", 0.5),))      H_a · H_b^½, the ordered product
((("a", 0.7), ("b", 0.5)),)         exp(0.7 log H_a + 0.5 log H_b), the mean

Strengths can differ between the layers of a model: `mixture_in` makes the mixture of a layer of that of a model.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from hra_diffusion.adapter.columns import ColumnStore
from hra_diffusion.adapter.strengths import Strength, strength_in
from hra_diffusion.householder.geodesic import blend as blend_chains

Blend = tuple[tuple[str, float], ...]
Mixture = tuple[Blend, ...]
ModelMixture = tuple[tuple[tuple[str, Strength], ...], ...]
"""A mixture whose strengths may differ between layers."""
Combine = Literal["mean", "product"]


@dataclass(frozen=True, kw_only=True)
class ActiveAdapters:
    """The active adapters of a model, their strengths and their combination.

    Attributes:
        names: the active adapters, in the order of their product.
        strengths: strengths of all adapters, active or not.
        combine: "mean" for the geodesic mean, "product" for the ordered product.
        enabled: False for the base model.
        inference_mode: keep the active adapters frozen.
    """

    names: tuple[str, ...] = ()
    strengths: Mapping[str, Strength] = field(default_factory=dict[str, Strength])
    combine: Combine = "product"
    enabled: bool = True
    inference_mode: bool = False

    @property
    def mixture(self) -> ModelMixture:
        """The mixture of the active adapters."""
        parts = tuple((name, self.strengths[name]) for name in self.names)
        return (parts,) if self.combine == "mean" else tuple((part,) for part in parts)

    def product(self, names: Iterable[str]) -> ModelMixture:
        """Return the ordered product of any adapters at their strengths."""
        return tuple(((name, self.strengths[name]),) for name in names)


class BlendCache:
    """Blends of the adapters in one layer, computed once for each change of their columns.

    Args:
        columns: the columns of the layer's adapters.
    """

    def __init__(self, columns: ColumnStore) -> None:
        self._columns = columns
        self._computed: dict[Blend, tuple[Hashable, Tensor]] = {}

    def mix(self, mixture: Mixture, active: Mixture) -> Tensor | None:
        """Return the columns (d, Σk) of a mixture; None when the layer has none of its adapters.

        Args:
            mixture: any mixture.
            active: the active mixture, whose blends are kept.
        """
        if not torch.compiler.is_compiling():  # A compiled model uses the blends computed before its pass.
            blend_together((self, blend) for blend in self.stale(mixture, active))
        parts = [
            self._columns.chain(blend[0][0]) if is_plain(blend) else self._computed[blend][1]
            for blend in self._present(mixture)
        ]
        return torch.cat(parts, dim=1) if len(parts) > 1 else next(iter(parts), None)

    def stale(self, mixture: Mixture, active: Mixture) -> list[Blend]:
        """List the blends of a mixture to compute, and forget the blends of other mixtures."""
        needed = self._present(mixture)
        kept = {*needed, *self._present(active)}
        self._computed = {blend: computed for blend, computed in self._computed.items() if blend in kept}
        return [
            blend
            for blend in needed
            if not is_plain(blend) and self._computed.get(blend, (None,))[0] != self.version((blend,))
        ]

    def chains(self, blend: Blend) -> list[Tensor]:
        """Return the columns (d, k) of each chain in a blend."""
        return [self._columns.chain(name) for name, _ in blend]

    def keep(self, blend: Blend, columns: Tensor) -> None:
        """Store the columns of a blend, as constants."""
        self._computed[blend] = (self.version((blend,)), columns)

    def _present(self, mixture: Mixture) -> list[Blend]:
        """List the blends of a mixture without adapters that are absent or have strength 0."""
        blends = (tuple(part for part in blend if part[1] != 0 and part[0] in self._columns) for blend in mixture)
        return [blend for blend in blends if blend]

    def version(self, mixture: Mixture) -> Hashable:
        """Return a value that differs after any change of the columns of a mixture's adapters."""
        return tuple(self._columns.version(name) for blend in mixture for name, _ in blend if name in self._columns)


@torch.inference_mode(False)
@torch.no_grad()
def blend_together(wanted: Iterable[tuple[BlendCache, Blend]]) -> None:
    """Compute blends of several layers, in one batch for each shape, and store them in their caches.

    Blends of offloaded columns are skipped: their layers compute them when they are called.

    Raises:
        ConfigError: an adapter has an odd rank.
    """
    batches: defaultdict[Hashable, list[tuple[BlendCache, Blend, list[Tensor]]]] = defaultdict(list)
    for cache, blend in wanted:
        chains = cache.chains(blend)
        if any(columns.is_meta for columns in chains):
            continue
        strengths = tuple(strength for _, strength in blend)
        batches[strengths, tuple((U.shape, U.device) for U in chains)].append((cache, blend, chains))
    for batch in batches.values():
        stacks = [torch.stack(chains) for chains in zip(*(chains for _, _, chains in batch), strict=True)]
        blended = blend_chains(stacks, [strength for _, strength in batch[0][1]])
        for (cache, blend, _), columns in zip(batch, blended, strict=True):
            cache.keep(blend, columns)


def mixture_in(mixture: ModelMixture, layer: str) -> Mixture:
    """Return a model's mixture in a layer by its dotted name."""
    return tuple(tuple((name, strength_in(strength, layer)) for name, strength in blend) for blend in mixture)


def is_plain(blend: Blend) -> bool:
    """Return whether a blend is one adapter at strength 1."""
    return len(blend) == 1 and blend[0][1] == 1
