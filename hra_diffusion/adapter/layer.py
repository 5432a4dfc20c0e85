"""An adapted layer: a frozen base layer behind a chain of reflections.

    y = base_layer(H x),   W' = W H

The base layer is called as it is: it may be quantized, offloaded, hooked or compiled. Only merging reads its weight.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.columns import ColumnStore
from hra_diffusion.adapter.kept_factors import FactorCache
from hra_diffusion.adapter.magnitudes import MagnitudeStore
from hra_diffusion.adapter.masks import MaskedRows
from hra_diffusion.adapter.mixture import BlendCache, Mixture
from hra_diffusion.adapter.peft_layer import PeftLayerNames
from hra_diffusion.adapter.rows import Rows
from hra_diffusion.adapter.wrapper import Wrapper
from hra_diffusion.errors import MergeError
from hra_diffusion.householder.compact_wy import factor, full_precision
from hra_diffusion.householder.factoring import Factors
from hra_diffusion.householder.reflection import reflect_factored


class HRALayer(PeftLayerNames, Wrapper):
    """Base class of adapted layers.

    Args:
        base_layer: the layer to adapt.
        columns: the columns of its adapters; an empty store by default.

    Attributes:
        columns: the columns of all adapters in this layer.
        blends: their cached blends.
        factors: their cached factors.
        magnitudes: the magnitudes of the adapters that have one.
        mixture: the active adapters with their strengths.
        is_blended: whether the mixture has blends, whose columns are computed.
        enabled: False for the base layer.
        merged: the adapters in the base layer's weight, with their strengths; empty when none is merged.
        rows: the adapters of the examples in a mixed batch, or inside of masks; None for the active mixture.
        channel_dim: the dimension of the outputs' channels.
    """

    channel_dim: int = -1

    def __init__(self, base_layer: nn.Module, columns: ColumnStore | None = None) -> None:
        super().__init__(base_layer)
        self.columns = ColumnStore(self) if columns is None else columns
        self.blends = BlendCache(self.columns)
        self.factors = FactorCache(self.blends)
        self.mixture: Mixture = ()
        self.magnitudes = MagnitudeStore(self)
        self.is_blended = False
        self.enabled = True
        self.merged: Mixture = ()
        self.rows: Rows | MaskedRows | None = None
        self._unmerged_weight: list[nn.Parameter] = []

    @property
    def hra_u(self) -> ColumnStore:
        """The trainable columns (d, r) of all adapters, by PEFT's name."""
        return self.columns

    def mixed_columns(self, mixture: Mixture | None = None) -> Tensor | None:
        """Return the columns (d, Σk) of a mixture, by default the active one; None when all its adapters are absent."""
        return self.blends.mix(self.mixture if mixture is None else mixture, self.mixture)

    def active_columns(self) -> Tensor | None:
        """Return the columns for the forward pass; None while the layer is disabled or merged."""
        return self.mixed_columns() if self.is_active else None

    @property
    def is_active(self) -> bool:
        """Whether the forward pass uses the active mixture: the layer is neither disabled nor merged."""
        return self.enabled and not self.merged

    @property
    def unfolded_size(self) -> int:
        """Number of inputs to one output: d, the length of a column."""
        raise NotImplementedError

    def unfold_weight(self, weight: Tensor) -> Tensor:
        """View the base layer's weight as (out, d)."""
        raise NotImplementedError

    def fold_weight(self, unfolded: Tensor) -> Tensor:
        """Undo `unfold_weight`."""
        raise NotImplementedError

    @torch.inference_mode(False)
    @torch.no_grad()
    def merged_weight(self, mixture: Mixture) -> Tensor | None:
        """Return the original weight times a mixture of adapters; None when all of them are absent.

        Raises:
            MergeError: the weight is quantized.
        """
        columns = self.mixed_columns(mixture)
        if columns is None:
            return None
        weight = self.original_weight()
        with full_precision(weight.device):
            unfolded, m = self.unfold_weight(weight), self.magnitudes.factors(mixture)
            if m is not None:
                unfolded = unfolded * m.to(weight.device).unsqueeze(1)
            rotated = factor(columns.to(weight.device)).rotate_weight(unfolded).to(weight.dtype)
            return self.fold_weight(rotated)

    def original_weight(self) -> Tensor:
        """Return the base layer's weight without merged adapters.

        Raises:
            MergeError: the weight is offloaded, quantized, sharded, or held by another layer.
        """
        weight = self._unmerged_weight[0] if self._unmerged_weight else self.base_layer.weight
        if isinstance(weight, Tensor) and weight.is_meta and not any(u.is_meta for u in self.hra_u.values()):
            raise MergeError("Cannot merge into weights that are offloaded: merge first, then offload the model.")
        if type(weight) is not nn.Parameter or not weight.is_floating_point() or weight.dtype.itemsize < 2:
            raise MergeError(
                f"Cannot merge into the weight of a {type(self.base_layer).__name__} ({type(weight).__name__}): it is "
                "quantized or sharded. Use the adapter unmerged, or merge it before quantizing or sharding the model."
            )
        if not self._unmerged_weight and self.base_layer._parameters.get("weight") is not weight:
            raise MergeError(
                f"Cannot merge into a {type(self.base_layer).__name__}: another layer holds its weight. Remove the "
                "other adapter (a LoRA) first, or use both unmerged."
            )
        return weight

    def merge(self, weight: Tensor, mixture: Mixture) -> None:
        """Put a merged weight into the base layer, and keep the original parameter."""
        original: nn.Parameter = self.base_layer.weight
        if not self._unmerged_weight:
            self._unmerged_weight.append(original)
        self.base_layer.weight = nn.Parameter(weight, requires_grad=original.requires_grad)
        self.merged = mixture

    def unmerge(self) -> None:
        """Restore the original parameter, bit by bit.

        Raises:
            MergeError: the layer's weight is offloaded; the original parameter is kept.
        """
        if self._unmerged_weight:
            original, present = self._unmerged_weight[0], self.base_layer.weight
            if present.is_meta and not original.is_meta:
                raise MergeError("Cannot unmerge weights that are offloaded: stop offloading the model first.")
            original.data = original.data.to(present.device, present.dtype)  # The model may have moved meanwhile.
            self.base_layer.weight = original
            self._unmerged_weight.clear()
        self.merged = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HRALayer":
        def keep_precision(columns: Tensor) -> Tensor:
            moved = fn(columns)
            return columns.to(moved.device) if moved.dtype.itemsize < torch.float32.itemsize else moved

        self.factors.forget()
        if recurse:
            self.base_layer._apply(fn)
        return super()._apply(keep_precision, recurse=False)

    @property
    def reflects_input(self) -> bool:
        """Whether the chain applies to the layer's input itself."""
        raise NotImplementedError

    @property
    def expected_dtype(self) -> torch.dtype:
        """The probable dtype of the layer's computation, whatever its weights are stored in."""
        declared = getattr(self.base_layer, "compute_dtype", None)  # of bitsandbytes' layers
        if isinstance(declared, torch.dtype):
            return declared
        weight = getattr(self.base_layer, "weight", None)
        if isinstance(weight, Tensor) and weight.is_floating_point() and weight.dtype.itemsize > 1:
            return compute_dtype(weight)
        return compute_dtype(next(iter(self.hra_u.values())))

    def reflect_input(self, x: Tensor, *, output_is_kept: bool = False) -> Tensor:
        """Return H x for each row of x (*, d) with the active adapters; x itself when none is active."""
        if self.rows is not None:
            factors_of = self._factors_of_rows
            return self.rows.replace(x, lambda x, mixture: _reflect_mixture(x, factors_of(mixture, x)), factors_of)
        if not self.is_active:
            return x
        dtype = compute_dtype(x)
        factors = self.factors.of_mixture(self.mixture, dtype, x.device)
        return x if factors is None else reflect_factored(x.to(dtype), factors, output_is_kept=output_is_kept)

    def _factors_of_rows(self, mixture: Mixture, x: Tensor) -> Factors | None:
        columns = self.columns_of_rows(mixture)
        return None if columns is None else self.factors.of_rows(mixture, columns, compute_dtype(x), x.device)

    def columns_of_rows(self, mixture: Mixture) -> Tensor | None:
        """Return the columns of one mixture of a mixed batch; None when its adapters are absent here."""
        present = tuple(blend for row_mixture in self.rows.mixtures for blend in row_mixture) if self.rows else ()
        return self.blends.mix(mixture, present)

    def named_modules(self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True) -> Any:
        """Yield the base layer first: a model's first parameter, and so its dtype, are those of its base."""
        memo = set() if memo is None else memo
        if self not in memo:
            yield from self.base_layer.named_modules(memo, f"{prefix}.base_layer".lstrip("."), remove_duplicate)
            if remove_duplicate:
                memo.add(self)
            yield prefix, self

    def extra_repr(self) -> str:
        """Name the adapters and their ranks."""
        return ", ".join(f"{name}: r={columns.shape[1]}" for name, columns in self.hra_u.items())


def _reflect_mixture(x: Tensor, factors: Factors | None) -> Tensor:
    return x if factors is None else reflect_factored(x.to(factors.U.dtype), factors).to(x.dtype)


def compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of a layer's computation on x: that of autocasting if enabled, except for float64."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
