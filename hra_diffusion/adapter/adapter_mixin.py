"""Methods of PEFT and diffusers that activate and merge adapters."""

import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, get_args

from torch import nn

from hra_diffusion.adapter.activation import Activation, check_strength
from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.injection import Injection
from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.adapter.mixture import Combine
from hra_diffusion.adapter.strengths import LayerStrengths, Strength
from hra_diffusion.errors import ConfigError


class Strengths(Mapping[str, Strength]):
    """A view of the strengths of a model's adapters.

    Args:
        activation: the activation of the model's adapters.
    """

    def __init__(self, activation: Activation) -> None:
        self._activation = activation

    def __getitem__(self, adapter_name: str) -> Strength:
        return self._activation.active.strengths[adapter_name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._activation.active.strengths)

    def __len__(self) -> int:
        return len(self._activation.active.strengths)

    def __repr__(self) -> str:
        return repr(dict(self))


class AdapterMixin:
    """Activates and merges the adapters of `model`: one, the product of several, or their mean."""

    model: nn.Module
    _injection: Injection
    _activation: Activation

    @property
    def peft_config(self) -> dict[str, HRAConfig]:
        """The settings of each adapter."""
        return self._activation.configs

    @peft_config.deleter
    def peft_config(self) -> None:
        """Delete the model's own `peft_config`, as libraries do that remove their LoRAs."""
        vars(self.model).pop("peft_config", None)

    def adapted_layers(self) -> dict[str, HRALayer]:
        """Return the adapted layers by their names in the model."""
        return dict(self._injection.layers)

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Activate one adapter, or the ordered product H_first ⋯ H_last of several; freeze the others.

        Args:
            adapter_name: one or several names.
            inference_mode: freeze the active adapters, too.

        Raises:
            ConfigError: an adapter is unknown, or two of them train the same module whole.
        """
        names = one_or_several(adapter_name)
        self._activation.check_known(*names)
        self._injection.check_copies(names)
        self._activation.unmerge_to_change()
        self._activation.change(names=names, combine="product", inference_mode=inference_mode)
        self._activation.train_active()

    def set_adapters(
        self,
        adapter_names: str | Sequence[str],
        strengths: Strength | Sequence[Strength] = 1.0,
        combine: Combine = "mean",
    ) -> None:
        """Activate one or several adapters with their strengths.

        Args:
            adapter_names: one or several names; none for the base model.
            strengths: one number, or one for each layer, for all adapters or for each.
            combine: "mean" for exp(Σ sᵢ log Hᵢ), independent of the order; "product" for H_first ⋯ H_last.

        Raises:
            ConfigError: an adapter is unknown or repeated, or a strength or mean is impossible; nothing is changed.
        """
        names = one_or_several(adapter_names)
        if combine not in get_args(Combine):
            raise ConfigError(f"combine must be 'mean' or 'product'; found {combine!r}.")
        values = (strengths,) * len(names) if isinstance(strengths, int | float | LayerStrengths) else tuple(strengths)
        if len(values) != len(names):
            raise ConfigError(f"{len(names)} adapters need as many strengths; found {len(values)}.")
        if len(set(names)) < len(names):
            raise ConfigError(f"An adapter can be active once only; found {', '.join(map(repr, names))}.")
        self._activation.check_known(*names)
        chosen = dict(zip(names, values, strict=True))
        for name, strength in chosen.items():
            check_strength(name, strength, self.peft_config[name])
        self._activation.unmerge_to_change()
        self._activation.change(
            names=names, strengths={**self.strengths, **chosen}, combine=combine, inference_mode=False
        )
        self._activation.train_active()

    def set_strength(self, strength: Strength, adapter_name: str = "default") -> None:
        """Move an adapter along its geodesic: 0 is the base model, 1 the adapter; any real number is orthogonal.

        Trained biases and modules_to_save have no strength. At strengths other than 1, gradients pass through the
        adapter but do not reach it.

        Raises:
            ConfigError: the adapter is unknown, the strength is not finite, or the rank is odd and the strength is
                neither 0 nor 1; nothing is changed.
        """
        activation = self._activation
        activation.check_known(adapter_name)
        check_strength(adapter_name, strength, self.peft_config[adapter_name])
        activation.change(strengths={**self.strengths, adapter_name: strength})
        if adapter_name in self.merged_adapters:
            merged = activation.merged
            activation.merge(tuple(tuple((name, self.strengths[name]) for name, _ in blend) for blend in merged))

    @property
    def active_adapters(self) -> list[str]:
        """Names of the active adapters, in the order of their product."""
        return list(self._activation.active.names)

    @property
    def strengths(self) -> Mapping[str, Strength]:
        """Strengths of all present adapters, active or not; a view that follows changes, like `peft_config`."""
        return Strengths(self._activation)

    @property
    def active_adapter(self) -> str | list[str]:
        """The name of the single active adapter, or the list of several or no names."""
        return self.active_adapters[0] if len(self.active_adapters) == 1 else self.active_adapters

    def enable_adapter_layers(self) -> None:
        """Enable the active adapters."""
        self._activation.change(enabled=True)

    def disable_adapter_layers(self) -> None:
        """Disable all adapters until `enable_adapter_layers`; unmerge merged ones."""
        self.unmerge_adapter()
        self._activation.change(enabled=False)

    @contextmanager
    def disable_adapter(self) -> Generator[None]:
        """Disable all adapters within a `with` block."""
        if len({layer.enabled for layer in self._injection.layers.values()}) > 1:
            warnings.warn(
                "The model contains some adapter layers that are enabled and others that are disabled: all are enabled "
                "after the block.",
                stacklevel=3,
            )
        restore = self._restorer()
        self.disable_adapter_layers()
        try:
            yield
        finally:
            restore()

    @property
    def merged_adapters(self) -> list[str]:
        """Names of the merged adapters, in the order of their product."""
        return self._activation.merged_names

    def merge_adapter(self, adapter_names: str | Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into the weights; a pass then costs no more than the base model's.

        `unmerge_adapter` restores the original weights, bit by bit. Merged adapters stay merged and come first in the
        product.

        Args:
            adapter_names: names in the order of their product; the active adapters by default.
            safe_merge: check first that every merged weight is finite.

        Raises:
            ConfigError: an adapter is unknown or repeated, or the adapters are disabled.
            MergeError: a weight is quantized, or (safe_merge) not finite; nothing is changed.
        """
        names = None if adapter_names is None else one_or_several(adapter_names)
        self._activation.merge(self._activation.mixture_to_merge(names), safe_merge=safe_merge)

    def unmerge_adapter(self) -> None:
        """Restore the original weights."""
        self._activation.unmerge()

    def fuse_qkv_projections(self) -> None:
        """Join the projections of attention by diffusers' method, which joins their weights.

        Raises:
            ConfigError: the model has adapters, and none is merged.
        """
        if self.peft_config and not self.merged_adapters:
            raise ConfigError("Projections cannot be joined beside unmerged adapters: merge them first (fuse_hra).")
        model: Any = self.model
        model.fuse_qkv_projections()

    def _restorer(self) -> Callable[[], None]:
        """Return a function that restores the present activation, without adapters deleted until then."""
        return self._activation.restorer()

    @property
    def _is_plain(self) -> bool:
        """Whether disabling and enabling the adapters computes nothing."""
        return self._activation.is_plain

    def _ejected(self) -> AbstractContextManager[nn.Module]:
        """Yield the model without its adapters within a `with` block."""
        return self._injection.ejected()

    def _reseated(self) -> AbstractContextManager[None]:
        """Let a `with` block put LoRAs beneath the adapters.

        Raises:
            ConfigError: adapters are merged.
        """
        if self.merged_adapters:
            raise ConfigError("No LoRA can be loaded beneath fused adapters: unfuse them first (unfuse_hra).")
        return self._injection.reseated()


def one_or_several(names: str | Sequence[str]) -> tuple[str, ...]:
    """Return one name or several as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)
