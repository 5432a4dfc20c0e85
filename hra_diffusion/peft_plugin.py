"""PEFT's own HRA layers with this project's arithmetic.

>>> from hra_diffusion import peft_plugin
>>> peft_plugin.enable()

From then on every HRA layer of PEFT, made before or after, in `get_peft_model` or in diffusers' `add_adapter`, runs the
compact WY kernel instead of forming d × d matrices, takes convolutions of any shape, survives zero columns, merges and
unmerges bit by bit, and has a scale: the strength along the geodesic, which diffusers' `set_adapters` sets.
`disable()` gives PEFT its own methods back.
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
from hra_diffusion.adapter.mixture import Mixture

_originals: dict[tuple[type, str], Any] = {}


def enable() -> None:
    """Let PEFT's HRA layers use this project's forward, merge and scale; a second call changes nothing."""
    for owner, methods in _METHODS.items():
        for name, method in methods.items():
            if (owner, name) not in _originals:
                _originals[owner, name] = owner.__dict__.get(name)
                setattr(owner, name, method)


def disable() -> None:
    """Give PEFT's HRA layers their own methods back. What is merged stays merged."""
    while _originals:
        (owner, name), original = _originals.popitem()
        if original is None:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


class _Twin(HRALayer):
    """A layer of this project beside one of PEFT's, on the same base layer; the columns are PEFT's."""

    layer: Any

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.base_layer)
        object.__setattr__(self, "layer", layer)  # beside the modules: the twin is no part of PEFT's model either
        self.strengths: dict[str, float] = {}

    @property
    def hra_u(self) -> dict[str, nn.Parameter]:
        return dict(self.layer.hra_u.items())

    def has(self, name: str) -> bool:
        return name in self.layer.hra_u

    def own_columns(self, name: str) -> nn.Parameter:
        return self.layer.hra_u[name]

    def is_orthonormal(self, name: str) -> bool:
        return self.layer.hra_apply_GS[name]

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
        object.__setattr__(layer, "_hra_twin", twin)
    if twin.merged and not layer.merged:  # unmerged by PEFT, while this was disabled
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
    if names and self.merged and not twin.merged:  # merged by PEFT, before this was enabled
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
        _originals[type(self), "unmerge"](self)  # merged by PEFT, before this was enabled
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
    """Divide the strength of the active adapters, or set it to one."""
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
