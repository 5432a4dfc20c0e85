"""Mixtures of adapters: a product of blends, each the geodesic mean of adapters with strengths.

    ((("a", 1.0),), (("b", 0.5),))      H_a · H_b^½, the ordered product
    ((("a", 0.7), ("b", 0.5)),)         exp(0.7 log H_a + 0.5 log H_b)

Factoring and blending are matters of many small matrices: here they are done for all layers of a shape at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hra_diffusion.householder.compact_wy import CompactWY, factor, full_precision
from hra_diffusion.householder.geodesic import blend as blend_chains

if TYPE_CHECKING:
    from hra_diffusion.adapter.layer import HRALayer

Blend = tuple[tuple[str, float], ...]
Mixture = tuple[Blend, ...]


@dataclass(frozen=True, kw_only=True)
class Acting:
    """Which adapters act, and how.

    Attributes:
        names: the ones that do, in the order of their product.
        strengths: of all adapters, acting or not.
        as_mean: blended into one geodesic mean instead of multiplied.
        enabled: whether they act at all.
        inference_mode: frozen.
    """

    names: tuple[str, ...] = ()
    strengths: Mapping[str, float] = field(default_factory=dict[str, float])
    as_mean: bool = False
    enabled: bool = True
    inference_mode: bool = False

    @property
    def mixture(self) -> Mixture:
        """What the acting adapters make together."""
        parts = tuple((name, self.strengths[name]) for name in self.names)
        return (parts,) if self.as_mean else tuple((part,) for part in parts)

    def product(self, names: Iterable[str]) -> Mixture:
        """Return the product of any adapters, with their strengths."""
        return tuple(((name, self.strengths[name]),) for name in names)


@torch.inference_mode(False)
@torch.no_grad()
def blend_together(wanted: Iterable[tuple[HRALayer, Blend]]) -> None:
    """Compute blends of layers, and leave each with its layer.

    Left out, to be computed when they are called: layers whose columns are offloaded.

    Raises:
        ConfigError: an adapter has an odd rank.
    """
    alike: defaultdict[Hashable, list[tuple[HRALayer, Blend, list[Tensor]]]] = defaultdict(list)
    for layer, blend in wanted:
        chains = [layer.chain_columns(name) for name, _ in blend]
        if any(columns.is_meta for columns in chains):
            continue
        strengths = tuple(strength for _, strength in blend)
        alike[strengths, tuple((each.shape, each.device) for each in chains)].append((layer, blend, chains))
    for group in alike.values():
        chains = [torch.stack(together) for together in zip(*(chains for _, _, chains in group), strict=True)]
        blended = blend_chains(chains, [strength for _, strength in group[0][1]])
        for (layer, blend, _), columns in zip(group, blended, strict=True):
            layer.keep_blended(blend, columns)


@torch.no_grad()
def factor_together(layers: Iterable[HRALayer]) -> None:
    """Factor what acts in each layer ahead of a pass of the whole model, where that is one plain adapter.

    Left out, to be factored when they are called: columns that are sharded or offloaded, and what has several parts.
    """
    alike: defaultdict[Hashable, list[tuple[HRALayer, Tensor]]] = defaultdict(list)
    for layer in layers:
        layer.ready = None  # of a pass that was interrupted
        columns = layer.acting_columns()
        if type(columns) is nn.Parameter and not columns.is_meta and len(columns.shape) == 2 and layer.turns_input:
            alike[columns.shape, columns.dtype, columns.device, layer.expected_dtype].append((layer, columns))
    for group in alike.values():
        with full_precision(group[0][1].device):
            stacked = factor(torch.stack([columns for _, columns in group]), group[0][0].expected_dtype)
        for (layer, columns), U, T in zip(group, stacked.U, stacked.T, strict=True):
            layer.ready = columns, CompactWY(U, T)
