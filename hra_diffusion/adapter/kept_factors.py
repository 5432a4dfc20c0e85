"""Factors of the chains in one layer, kept until their columns change.

Factors of frozen columns serve every pass until a column changes, which its version counter tells. Factors of trained
columns serve one pass and its backward pass: an optimizer may write through `.data`, which no counter tells.
"""

from collections.abc import Hashable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch._C import _current_graph_task_id  # pyright: ignore[reportPrivateUsage]

from hra_diffusion.adapter.mixture import BlendCache, Mixture
from hra_diffusion.householder.factoring import Factors, factor_chains
from hra_diffusion.householder.recording import is_transformed

_MAX_MIXTURES: Final = 32
"""Mixtures of mixed batches whose factors a layer keeps, such as those of different strengths."""


class KeptFactors(NamedTuple):
    """The factors of columns.

    Attributes:
        version: the version of the columns.
        columns: the columns (d, k).
        factors: their factors, for rows of one dtype.
        in_pass: a list of one, shared by a model's layers: whether the pass that they were made for is not over.
    """

    version: Hashable
    columns: Tensor
    factors: Factors
    in_pass: list[bool]

    @property
    def outlast_a_pass(self) -> bool:
        """Whether they serve until the columns change: the columns are not trained."""
        return not self.columns.requires_grad

    def fit(self, dtype: torch.dtype, device: torch.device) -> bool:
        """Return whether they are for rows of a dtype and device."""
        return self.factors.U.dtype == dtype and self.factors.U.device == device

    def serve(self, version: Hashable) -> bool:
        """Return whether they serve outside of their pass, for columns of a version."""
        in_backward_pass = _current_graph_task_id() != -1
        return (self.outlast_a_pass or in_backward_pass) and self.version == version


class FactorCache:
    """The factors of one layer's active mixture, and of the adapters of mixed batches.

    Copies and pickles are empty.

    Args:
        blends: the blends of the layer.

    Attributes:
        active: the factors of the active mixture, if known.
    """

    def __init__(self, blends: BlendCache) -> None:
        self._blends = blends
        self._of_rows: dict[Mixture, KeptFactors] = {}
        self.active: KeptFactors | None = None

    def version(self, mixture: Mixture) -> Hashable:
        """Return a value that differs after any change of the active mixture or of its columns."""
        return mixture, self._blends.version(mixture)

    def of_mixture(self, mixture: Mixture, dtype: torch.dtype, device: torch.device) -> Factors | None:
        """Return the factors of the active mixture for rows of a dtype and device; None when its adapters are absent.

        A compiled layer takes the known ones: then its graph depends neither on strengths nor on versions.
        """
        known, compiling, transformed = self.active, torch.compiler.is_compiling(), is_transformed()
        fitting = known if known is not None and known.fit(dtype, device) and not transformed else None
        if fitting and (compiling or fitting.in_pass[0] or fitting.serve(self.version(mixture))):
            return fitting.factors
        if known is not None and compiling and not transformed:
            columns = known.columns
        else:
            columns = self._blends.mix(mixture, mixture)
        if columns is None:
            return None
        factors = factor_chains([columns.to(device)], dtype)[0]
        if not (compiling or transformed):
            alone = KeptFactors(self.version(mixture), columns, factors, [False])
            self.active = alone if alone.outlast_a_pass else None
        return factors

    def of_rows(self, mixture: Mixture, columns: Tensor, dtype: torch.dtype, device: torch.device) -> Factors:
        """Return the factors of a mixture of a mixed batch, from its columns."""
        version, known = self.version(mixture), self._of_rows.get(mixture)
        transformed = is_transformed()
        if known is not None and known.fit(dtype, device) and known.serve(version) and not transformed:
            return known.factors
        kept = KeptFactors(version, columns, factor_chains([columns.to(device)], dtype)[0], [False])
        if kept.outlast_a_pass and not transformed:
            if len(self._of_rows) >= _MAX_MIXTURES:
                self._of_rows.pop(next(iter(self._of_rows)))
            self._of_rows[mixture] = kept
        return kept.factors

    def forget(self) -> None:
        """Forget all factors."""
        self.active = None
        self._of_rows.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {"_blends": self._blends, "_of_rows": {}, "active": None}
