"""PEFT's own HRA layers with this project's arithmetic.

>>> from hra_diffusion import peft_plugin
>>> peft_plugin.enable()

All HRA layers of PEFT, old and new ones, from `get_peft_model` or diffusers' `add_adapter`, then run the compact WY
kernel without d × d matrices, take convolutions of any shape and zero columns, and merge and unmerge bit by bit. Their
scale is the strength along the geodesic, set by diffusers' `set_adapters`. `disable()` restores PEFT's methods.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft.tuners.hra.layer import HRAConv2d as PeftConv2d
from peft.tuners.hra.layer import HRALayer as PeftLayer
from peft.tuners.hra.layer import HRALinear as PeftLinear
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from hra_diffusion.adapter import HRAConv2d, HRALayer, HRALinear
from hra_diffusion.adapter.columns import ColumnStore
from hra_diffusion.adapter.mixture import Mixture

_originals: dict[tuple[type, str], Any] = {}


def enable() -> None:
    """Replace forward, merge and scale of PEFT's HRA layers; a second call changes nothing."""
    for owner, methods in _METHODS.items():
        for name, method in methods.items():
            if (owner, name) not in _originals:
                _originals[owner, name] = owner.__dict__.get(name)
                setattr(owner, name, method)


def disable() -> None:
    """Restore the methods of PEFT's HRA layers. Merged adapters stay merged."""
    while _originals:
        (owner, name), original = _originals.popitem()
        if original is None:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


class _PeftColumns(ColumnStore):
    """The columns of a layer of PEFT."""

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        return dict(self._layer.hra_u.items())

    def __contains__(self, adapter: str) -> bool:
        return adapter in self._layer.hra_u

    def __getitem__(self, adapter: str) -> nn.Parameter:
        return self._layer.hra_u[adapter]

    def is_orthonormal(self, adapter: str) -> bool:
        return self._layer.hra_apply_GS[adapter]


class _Twin(HRALayer):
    """A layer of this project with the base layer and the columns of a layer of PEFT."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.base_layer, _PeftColumns(layer))
        self.strengths: dict[str, float] = {}

    def product(self, names: list[str]) -> Mixture:
        return tuple(((name, self.strengths.get(name, 1.0)),) for name in names)


class _LinearTwin(_Twin, HRALinear):
    pass


class _ConvTwin(_Twin, HRAConv2d):
    pass


def _twin(layer: Any) -> _Twin:
    twin = layer.__dict__.get("_hra_twin")
    if twin is None or twin.base_layer is not layer.base_layer:
        twin = (_LinearTwin if isinstance(layer, PeftLinear) else _ConvTwin)(layer)
        object.__setattr__(layer, "_hra_twin", twin)  # not as a submodule of PEFT's layer
    if twin.merged and not layer.merged:  # PEFT unmerged it while the plug-in was disabled.
        twin.unmerge()
    return twin


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    dtype, twin = x.dtype, _twin(self)
    if self.disable_adapters and self.merged:
        self.unmerge()
    twin.enabled = not (self.disable_adapters or self.merged)
    if twin.enabled:
        twin.mixture = twin.product(self.active_adapters)
        x = self._cast_input_dtype(x, twin.expected_dtype)
    return twin(x, *args, **kwargs).to(dtype)


@torch.no_grad()
def _merge(self: Any, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
    twin = _twin(self)
    names = check_adapters_to_merge(self, adapter_names)
    if names and self.merged and not twin.merged:  # PEFT merged them before the plug-in was enabled.
        names = [*self.merged_adapters, *names]
        _unmerge(self)
    for name in names:
        if name not in self.hra_u:
            continue
        mixture = twin.product([*self.merged_adapters, name])
        if (weight := twin.merged_weight(mixture)) is not None:
            if safe_merge and not weight.isfinite().all():
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
            twin.merge(weight, mixture)
        self.merged_adapters.append(name)


def _unmerge(self: Any) -> None:
    twin = _twin(self)
    if self.merged and not twin.merged:
        _originals[type(self), "unmerge"](self)  # PEFT merged them before the plug-in was enabled.
    elif self.merged:
        twin.unmerge()
        self.merged_adapters.clear()
    else:
        warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)


def _set_scale(self: Any, adapter: str, scale: float) -> None:
    """Set an adapter's strength along its geodesic."""
    if adapter in self.hra_u:
        _twin(self).strengths[adapter] = scale


def _scale_layer(self: Any, scale: float) -> None:
    """Multiply the strength of the active adapters."""
    for name in self.active_adapters:
        self.set_scale(name, _twin(self).strengths.get(name, 1.0) * scale)


def _unscale_layer(self: Any, scale: float | None = None) -> None:
    """Divide the strength of the active adapters, or set it to 1."""
    for name in self.active_adapters:
        self.set_scale(name, 1.0 if scale is None else _twin(self).strengths.get(name, 1.0) / scale)


def _delete_adapter(self: Any, adapter_name: str) -> None:
    _twin(self).strengths.pop(adapter_name, None)
    BaseTunerLayer.delete_adapter(self, adapter_name)


_LAYER_METHODS: dict[str, Callable[..., Any]] = {"forward": _forward, "merge": _merge, "unmerge": _unmerge}
_METHODS: dict[type, dict[str, Callable[..., Any]]] = {
    PeftLinear: _LAYER_METHODS,
    PeftConv2d: _LAYER_METHODS,
    PeftLayer: {
        "set_scale": _set_scale,
        "scale_layer": _scale_layer,
        "unscale_layer": _unscale_layer,
        "delete_adapter": _delete_adapter,
    },
}
