"""Adapted layers: a frozen base layer behind a chain of reflections.

    y = base_layer(H x),   W' = W H

The base layer is only called: it may be quantised, offloaded, hooked or compiled. Only merging reads its weight.
"""

from collections.abc import Callable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.targets import is_linear
from hra_diffusion.errors import HRAError, TargetError
from hra_diffusion.householder.compact_wy import CompactWY, factor, full_precision
from hra_diffusion.householder.reflect import reflect

# A layer's columns in a state dict: "<module>.hra_u".
COLUMNS_SUFFIX = ".hra_u"


class Columns(nn.ParameterDict):
    """The trainable columns of each adapter of a layer, kept in float32 or wider whatever the model is cast to."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Columns":
        def keep_precision(columns: Tensor) -> Tensor:
            moved = fn(columns)
            return columns.to(moved.device) if moved.dtype.itemsize < torch.float32.itemsize else moved

        return super()._apply(keep_precision, recurse)


class HRALayer(nn.Module):
    """What adapted layers share: named columns, which of them are active, and merging.

    Attributes:
        base_layer: the layer that was there before; the very object, so that ejecting is exact.
        hra_u: adapter name → columns (d, r), with d the unfolded input size of the base layer.
        active: names of the adapters in use, in the order of their product: H = H_a H_b.
        enabled: whether they are used at all.
        merged: names of the adapters that the base layer's weight contains at present.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.hra_u = Columns()
        self.active: list[str] = []
        self.enabled = True
        self.merged: list[str] = []
        self._unmerged_weight: list[nn.Parameter] = []

    @property
    def device(self) -> torch.device:
        """Where the base layer is."""
        return self._any_base_tensor().device

    @property
    def columns_dtype(self) -> torch.dtype:
        """What columns are stored in: float64 for a float64 base layer, else float32."""
        return torch.float64 if self._any_base_tensor().dtype == torch.float64 else torch.float32

    def _any_base_tensor(self) -> Tensor:
        return next(chain(self.base_layer.parameters(), self.base_layer.buffers()), torch.empty(0))

    @property
    def unfolded_size(self) -> int:
        """Number of inputs that one output sees: d, the length of a column."""
        raise NotImplementedError

    def unfold_weight(self, weight: Tensor) -> Tensor:
        """View the base layer's weight as (out, d)."""
        raise NotImplementedError

    def columns(self, names: Sequence[str] | None = None) -> Tensor | None:
        """Columns (d, Σr) of the product of the named adapters, or the active ones; None when there are none here."""
        chosen = [self.hra_u[name] for name in (self.active if names is None else names) if name in self.hra_u]
        return torch.cat(chosen, dim=1) if len(chosen) > 1 else next(iter(chosen), None)

    def chain(self, names: Sequence[str] | None = None) -> CompactWY | None:
        """Factor the product H of the named adapters, or the active ones; None when there are none here."""
        columns = self.columns(names)
        if columns is None:
            return None
        with full_precision(columns.device):
            return factor(columns)

    @torch.no_grad()
    def merged_weight(self, names: Sequence[str]) -> Tensor | None:
        """Multiply the named adapters into a copy of the base layer's weight; None when there are none here.

        Raises:
            HRAError: the weight is quantised.
        """
        chain = self.chain(names)
        if chain is None:
            return None
        weight = self.base_layer.weight
        if type(weight) is not nn.Parameter or not weight.is_floating_point() or weight.dtype.itemsize < 2:
            raise HRAError(
                f"Cannot merge into the {type(weight).__name__} weight of a {type(self.base_layer).__name__}: it is "
                "quantised. Use the adapter unmerged, or merge into the model before quantising it."
            )
        with full_precision(weight.device):
            return self._fold_weight(chain.rotate_weight(self.unfold_weight(weight)), weight)

    def replace_weight(self, weight: Tensor, names: Sequence[str]) -> None:
        """Put a merged weight into the base layer, and keep the original parameter aside."""
        original: nn.Parameter = self.base_layer.weight
        self.base_layer.weight = nn.Parameter(weight, requires_grad=original.requires_grad)
        self._unmerged_weight.append(original)
        self.merged.extend(name for name in names if name in self.hra_u)

    def restore_weight(self) -> None:
        """Put the original parameter back: bit by bit what it was."""
        if self._unmerged_weight:
            self.base_layer.weight = self._unmerged_weight[0]
        self._unmerged_weight.clear()
        self.merged.clear()

    def _fold_weight(self, unfolded: Tensor, like: Tensor) -> Tensor:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HRALayer":
        for original in self._unmerged_weight:
            original.data = fn(original.data)
        return super()._apply(fn, recurse)

    def __getattr__(self, name: str) -> object:
        """Look like the base layer: `weight`, `bias`, `in_features`, … are its own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(super().__getattr__("base_layer"), name)


class HRALinear(HRALayer):
    """A linear layer, of any kind that can be called with (*, d), behind a chain of reflections."""

    @property
    def unfolded_size(self) -> int:
        """in_features; GPT-2's Conv1D stores (in, out)."""
        size = getattr(self.base_layer, "in_features", None)
        return self.base_layer.weight.shape[0] if size is None else size

    def unfold_weight(self, weight: Tensor) -> Tensor:
        """View the weight as (out, in)."""
        return weight if hasattr(self.base_layer, "in_features") else weight.mT

    def _fold_weight(self, unfolded: Tensor, like: Tensor) -> Tensor:
        return self.unfold_weight(unfolded).contiguous()

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """base_layer(H x) for x (*, d), in the precision the base layer computes in."""
        if self.enabled and not self.merged and (columns := self.columns()) is not None:
            x = reflect(x.to(_compute_dtype(x)), columns)
        return self.base_layer(x, *args, **kwargs)


def wrap(name: str, module: nn.Module) -> HRALayer:
    """Return an adapted layer around a module.

    Raises:
        TargetError: modules of this type cannot be adapted.
    """
    if is_linear(module):
        return HRALinear(module)
    raise TargetError(
        f"Cannot adapt {name!r}, a {type(module).__name__}: only linear layers can be adapted. "
        "Choose other target_modules, or add it to exclude_modules."
    )


def _compute_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype a linear layer would compute in: autocasting's where it is on (it leaves float64 alone)."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
