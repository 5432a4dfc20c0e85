"""Magnitudes of adapters in one layer: a positive factor for each output, W' = diag(m) W H.

    y = m ⊙ (base_layer(H x) − b) + b,   m = exp(p)

The logarithms p train, from zero. So m is positive, its steps are relative, and strengths and means are those of
chains: m^s = exp(s p), and exp(Σ sᵢ pᵢ) for several adapters.

H keeps the norms of W's rows. So diag(m) W H is a DoRA, exactly: its direction is W + B A = W H, and its magnitude is m
times the norms of W's rows.

Source: Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024, arXiv 2402.09353.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.mixture import Mixture, is_plain

_PREFIX = "hra_log_magnitude_"


class MagnitudeStore:
    """The logarithms (out,) of the magnitudes of adapters by name, stored as parameters of their layer.

    They are float32 or wider, whatever the base layer's dtype.

    Args:
        layer: the adapted layer.

    Attributes:
        adapters: names of the adapters with a magnitude in this layer.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._active: list[tuple[str, Tensor | None]] = []
        self.adapters: tuple[str, ...] = ()

    def __contains__(self, adapter: str) -> bool:
        return adapter in self.adapters

    def __getitem__(self, adapter: str) -> nn.Parameter:
        return self._layer._parameters[_PREFIX + adapter]

    @property
    def size(self) -> int:
        """Number of outputs of the layer."""
        size = getattr(self._layer, "out_features", None)
        return len(self._layer.unfold_weight(self._layer.base_layer.weight)) if size is None else size

    @torch.inference_mode(False)
    def put(self, adapter: str, logarithms: Tensor | None = None) -> None:
        """Add an adapter's magnitude, frozen: beside its columns, of their dtype; by default 1."""
        columns = self._layer.columns[adapter]
        dtype = torch.promote_types(columns.dtype, torch.float32)
        if logarithms is None:
            kept = torch.zeros(self.size, dtype=dtype, device=columns.device)
        else:
            kept = logarithms.detach().to(columns.device, dtype, copy=True)
        self._layer.register_parameter(_PREFIX + adapter, nn.Parameter(kept, requires_grad=False))
        self.adapters = (*self.adapters, adapter)
        self.activate(self._layer.mixture)

    @torch.no_grad()
    def reload(self, adapter: str, logarithms: Tensor | None) -> None:
        """Write other logarithms over an adapter's, by default zeros; those on the meta device are replaced."""
        target = self[adapter]
        if target.is_meta and not self._layer.columns[adapter].is_meta:
            values = torch.zeros_like(target, device=self._layer.columns.device)
            target = nn.Parameter(values, requires_grad=target.requires_grad)
            self._layer._parameters[_PREFIX + adapter] = target
        target.copy_(torch.zeros_like(target) if logarithms is None else logarithms)

    def remove(self, adapter: str) -> None:
        """Remove an adapter's magnitude, if present."""
        self._layer._parameters.pop(_PREFIX + adapter, None)
        self.adapters = tuple(name for name in self.adapters if name != adapter)
        self.activate(self._layer.mixture)

    def activate(self, mixture: Mixture) -> None:
        """Prepare the mixture of the next passes. Strengths are tensors: no compiled graph depends on their values."""
        self._active = list(self._terms(mixture))

    def factors(self, mixture: Mixture) -> Tensor | None:
        """Return the factors m (out,) of a mixture; None when none of its adapters has a magnitude here."""
        return self._product(list(self._terms(mixture)))

    def scale(self, y: Tensor, x: Tensor) -> Tensor:
        """Return m ⊙ (y − b) + b for outputs y of the base layer, in their dtype.

        Args:
            y: outputs, with the layer's channels in its dimension `channel_dim`.
            x: inputs of the layer: their trailing dimensions are those of an input without an effect.
        """
        layer = self._layer
        if layer.rows is not None:
            names = {name for mixture in layer.rows.mixtures for blend in mixture for name, _ in blend}
            if names.isdisjoint(self.adapters):
                return y

            def scaled(part: Tensor, mixture: Mixture) -> Tensor:
                return self._scaled(part, x, self.factors(mixture))

            return layer.rows.replace(y, scaled)
        return self._scaled(y, x, self._product(self._active)) if layer.is_active else y

    def _scaled(self, y: Tensor, x: Tensor, m: Tensor | None) -> Tensor:
        if m is None:
            return y
        shape = (-1, *(1,) * (-1 - self._layer.channel_dim))
        m, bias = m.to(y.device), self._bias(x)
        if bias is None:
            return (y * m.view(shape)).to(y.dtype)
        offset = bias.to(y.device) * (1 - m)
        return torch.addcmul(offset.view(shape), y, m.view(shape)).to(y.dtype)

    def _bias(self, x: Tensor) -> Tensor | None:
        """Return the base layer's bias; the output of zeros if the bias is offloaded outside of the layer's pass."""
        bias = getattr(self._layer.base_layer, "bias", None)
        if not isinstance(bias, Tensor):
            return None
        if bias.is_meta and not x.is_meta:
            zeros = x.new_zeros(1, *x.shape[self._layer.channel_dim :])
            return self._layer.base_layer(zeros)[0].reshape(self.size, -1)[:, 0]
        return bias

    def _product(self, terms: list[tuple[str, Tensor | None]]) -> Tensor | None:
        logarithms = [self[name] if strength is None else strength * self[name].detach() for name, strength in terms]
        if not logarithms:
            return None
        return (logarithms[0] if len(logarithms) == 1 else torch.stack(logarithms).sum(dim=0)).exp()

    def _terms(self, mixture: Mixture) -> Iterator[tuple[str, Tensor | None]]:
        """Yield the adapters of a mixture with their strengths; None for an adapter at strength 1, which may train."""
        for blend in mixture:
            for name, strength in blend:
                if strength != 0 and name in self.adapters:
                    yield name, None if is_plain(blend) else torch.tensor(strength, dtype=torch.float64)
