"""The columns of adapters in one layer."""

from collections.abc import Hashable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from hra_diffusion.householder.gram_schmidt import orthonormal_columns
from hra_diffusion.householder.recording import is_wrapped

_COLUMNS, _ANCHOR = "hra_u_", "hra_anchor_"


class ColumnStore(Mapping[str, nn.Parameter]):
    """The trainable columns (d, r) of adapters by name, stored as parameters of their layer.

    Whatever moves the parameters of a layer between devices moves the columns along. They are float32 or wider,
    whatever the base layer's dtype, unless half precision is asked for. Chains are float32 or wider in any case: in
    half precision H would not be orthogonal.

    Args:
        layer: the adapted layer.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._orthonormal: set[str] = set()

    @property
    def anchors(self) -> dict[str, nn.Parameter]:
        """The frozen orthonormal columns (d, r) in front of anchored adapters."""
        return self._named(_ANCHOR)

    def __contains__(self, adapter: object) -> bool:
        return f"{_COLUMNS}{adapter}" in self._layer._parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self._named(_COLUMNS))

    def __len__(self) -> int:
        return len(self._named(_COLUMNS))

    def __getitem__(self, adapter: str) -> nn.Parameter:
        return self._layer._parameters[_COLUMNS + adapter]

    @torch.inference_mode(False)
    def put(
        self,
        adapter: str,
        columns: Tensor,
        *,
        anchor: Tensor | None = None,
        orthonormal: bool = False,
        half: bool = False,
    ) -> None:
        """Add an adapter, frozen.

        Args:
            adapter: its name.
            columns: (d, r), copied to the base layer's device unless either is on the meta device.
            anchor: frozen orthonormal columns (d, r) in front of them.
            orthonormal: apply Gram–Schmidt to the columns.
            half: keep the columns in the half precision of the base layer's weight, if it has one.
        """
        device = columns.device if self.device.type == "meta" or columns.is_meta else self.device
        base = self._base_tensor.dtype
        kept = base == torch.float64 or (half and base in (torch.float16, torch.bfloat16))
        dtype = base if kept else torch.float32
        for prefix, tensor in ((_COLUMNS, columns), (_ANCHOR, anchor)):
            if tensor is not None:
                copied = nn.Parameter(tensor.detach().to(device, dtype, copy=True), requires_grad=False)
                self._layer.register_parameter(prefix + adapter, copied)
        if orthonormal:
            self._orthonormal.add(adapter)

    @torch.no_grad()
    def overwrite(self, adapter: str, columns: Tensor) -> None:
        """Write columns (d, at most r) over an adapter's in place, and zeros into the remaining ones."""
        target = self[adapter]
        target[:, : columns.shape[1]] = columns.to(target.device, target.dtype)
        target[:, columns.shape[1] :] = 0
        self._orthonormal.discard(adapter)

    def accepts(self, adapter: str, chain: Tensor) -> bool:
        """Return whether a chain can be an adapter's: orthonormal, anchor and columns each, after Gram–Schmidt."""
        if not self.is_orthonormal(adapter):
            return True
        parts = chain.float().split(self[adapter].shape[1], dim=1)
        return all(torch.allclose(part.mT @ part, torch.eye(part.shape[1]), atol=1e-3) for part in parts)

    @torch.no_grad()
    def reload(self, adapter: str, chain: Tensor) -> None:
        """Write the columns (d, k) of an adapter's chain over its own, behind their anchor if it has one.

        Columns on the meta device become new parameters, and others are overwritten in place.
        """
        parameters, r = self._layer._parameters, self[adapter].shape[1]
        for prefix, part in ((_COLUMNS, chain[:, -r:]), (_ANCHOR, chain[:, :r])):
            target = parameters.get(prefix + adapter)
            if target is not None and target.is_meta and self.device.type != "meta":
                loaded = part.to(self.device, target.dtype, copy=True)
                parameters[prefix + adapter] = nn.Parameter(loaded, requires_grad=target.requires_grad)
            elif target is not None:
                target.copy_(part)

    def remove(self, adapter: str) -> None:
        """Remove an adapter, if present."""
        for prefix in (_COLUMNS, _ANCHOR):
            self._layer._parameters.pop(prefix + adapter, None)
        self._orthonormal.discard(adapter)

    def is_orthonormal(self, adapter: str) -> bool:
        """Return whether Gram–Schmidt is applied to an adapter's columns."""
        return adapter in self._orthonormal

    def chain(self, adapter: str) -> Tensor:
        """Return the columns (d, k) of an adapter's chain: k = r, or 2 r with an anchor."""
        columns = _widened(self[adapter])
        if not self.is_orthonormal(adapter):
            return columns
        orthonormal = orthonormal_columns(columns)
        anchor = self.anchors.get(adapter)
        return orthonormal if anchor is None else torch.cat([_widened(anchor), orthonormal], dim=1)

    def version(self, adapter: str) -> Hashable:
        """Return a value that differs after any change of an adapter's columns."""
        parameters = [self[adapter], *(u for name, u in self.anchors.items() if name == adapter)]
        return tuple((_address(u), 0 if u.is_inference() else u._version, u.device) for u in parameters)

    @property
    def device(self) -> torch.device:
        """The device of the base layer."""
        return self._base_tensor.device

    @property
    def _base_tensor(self) -> Tensor:
        base = self._layer.base_layer
        return next(chain(base.parameters(), base.buffers()), torch.empty(0))

    def _named(self, prefix: str) -> dict[str, nn.Parameter]:
        parameters = self._layer._parameters.items()
        return {name.removeprefix(prefix): u for name, u in parameters if u is not None and name.startswith(prefix)}


def _widened(columns: Tensor) -> Tensor:
    """Return columns of half precision in float32, and others themselves."""
    return columns.float() if columns.dtype.itemsize < torch.float32.itemsize else columns


def _address(parameter: Tensor) -> int:
    """Return the address of a parameter's data; 0 without data."""
    return 0 if is_wrapped(parameter) or isinstance(parameter, FakeTensor) else parameter.data_ptr()
