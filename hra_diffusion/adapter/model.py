"""HRAModel: puts adapters into any torch model, and takes them out again without a trace."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.layers import COLUMNS_SUFFIX, Columns, HRALayer, wrap
from hra_diffusion.adapter.targets import find_targets
from hra_diffusion.errors import AdapterFileError, ConfigError, HRAError
from hra_diffusion.householder.start import paired_columns, random_columns


class HRAModel(nn.Module):
    """A model with HRA adapters in it; otherwise it looks and acts like the model.

    The model is changed in place: each target module is replaced by an adapted layer that holds it, and everything but
    the adapters' columns is frozen. `unload` puts every module back, the same objects, and unfreezes what was trainable.

    Args:
        model: any module.
        config: the adapter's settings, or several by name; with several, `adapter_name` is the active one.
        adapter_name: what to call the adapter.
        state_dict: tensors `<module>.hra_u` (d, r): the adapter goes into these modules and starts from these columns.
        generator: where random directions come from; torch's default generator when left out.

    Raises:
        AdapterFileError: `state_dict` does not fit the model.
        TargetError: the settings match none of the model's modules, or some that cannot be adapted.
        ConfigError: the model is adapted already, or the name cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        config: HRAConfig | Mapping[str, HRAConfig],
        adapter_name: str = "default",
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if isinstance(model, HRAModel) or any(isinstance(module, HRALayer) for module in model.modules()):
            raise ConfigError(
                "The model has HRA adapters already: use add_adapter of its HRAModel, or unload them first."
            )
        self.model = model
        self.peft_config: dict[str, HRAConfig] = {}
        self.active_adapters: list[str] = []
        self._was_trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        configs = {adapter_name: config} if isinstance(config, HRAConfig) else dict(config)
        if adapter_name not in configs:
            raise ConfigError(f"adapter_name {adapter_name!r} is none of the configured ones: {', '.join(configs)}.")
        try:
            for name, each in configs.items():
                given = state_dict if name == adapter_name else None
                self.add_adapter(name, each, state_dict=given, generator=generator)
            self.set_adapter(adapter_name)
        except Exception:
            self.unload()
            raise

    # Adapters: add, delete, activate

    def add_adapter(
        self,
        adapter_name: str,
        config: HRAConfig,
        *,
        state_dict: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Put one more adapter into the model. It becomes active if it is the first.

        Raises:
            AdapterFileError: `state_dict` does not fit the model; the model is unchanged.
            TargetError: as for the constructor; the model is unchanged.
            ConfigError: the name is taken, or cannot be used.
        """
        self._check_new_name(adapter_name)
        with self.ejected() as present:
            targets = find_targets(self.model, config) if state_dict is None else _named_in(state_dict, self.model)
            layers = {name: present.get(name) or wrap(name, self.model.get_submodule(name)) for name in targets}
        if state_dict is None:
            columns = {name: _start_columns(layer, config, generator) for name, layer in layers.items()}
        else:
            columns = _given_columns(layers, config, state_dict)
        for name, layer in layers.items():
            layer.hra_u[adapter_name] = columns[name]
            self.model.set_submodule(name, layer)
        self.peft_config[adapter_name] = config
        self.set_adapter(self.active_adapters or adapter_name)
        if state_dict is None and config.init_weights and config.r % 2:
            warnings.warn(
                f"The rank r = {config.r} is odd: the adapter starts with a random reflection in each layer instead of "
                "at the base model, and its strength cannot be changed. Choose an even rank.",
                stacklevel=2,
            )

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; layers that no adapter is left in are given back.

        Raises:
            ConfigError: there is no such adapter, or it is merged.
        """
        self._check_known(adapter_name)
        if adapter_name in self.merged_adapters:
            raise ConfigError(f"The adapter {adapter_name!r} is merged into the model: unmerge it before deleting it.")
        del self.peft_config[adapter_name]
        for name, layer in self.layers().items():
            if adapter_name in layer.hra_u:
                del layer.hra_u[adapter_name]
            if not layer.hra_u:
                self.model.set_submodule(name, layer.base_layer)
        self.set_adapter([name for name in self.active_adapters if name != adapter_name] or list(self.peft_config)[:1])

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Use one adapter, or the ordered product of several (H = H_first ⋯ H_last); the others rest, frozen.

        Args:
            adapter_name: one or several names.
            inference_mode: freeze the used ones, too.

        Raises:
            ConfigError: there is no such adapter.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        for name in names:
            self._check_known(name)
        self.active_adapters = names
        self.model.requires_grad_(False)
        for layer in self.layers().values():
            layer.active = names
            for name, columns in layer.hra_u.items():
                trains = name in names and not inference_mode and not self.peft_config[name].inference_mode
                columns.requires_grad_(trains)

    @property
    def active_adapter(self) -> str | list[str]:
        """The adapter in use, or the list of them when they are several."""
        return self.active_adapters[0] if len(self.active_adapters) == 1 else self.active_adapters

    def enable_adapter_layers(self) -> None:
        """Use the active adapters."""
        for layer in self.layers().values():
            layer.enabled = True

    def disable_adapter_layers(self) -> None:
        """Act as the base model until `enable_adapter_layers`."""
        for layer in self.layers().values():
            layer.enabled = False

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Act as the base model within a `with` block."""
        before = {layer: layer.enabled for layer in self.layers().values()}
        self.disable_adapter_layers()
        try:
            yield
        finally:
            for layer, enabled in before.items():
                layer.enabled = enabled

    # Merging and unloading

    @property
    def merged_adapters(self) -> list[str]:
        """Names of the adapters that are merged into the weights at present."""
        return list(dict.fromkeys(name for layer in self.layers().values() for name in layer.merged))

    def merge_adapter(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """Multiply adapters into the weights, so that a forward pass costs what the base model's does.

        The original weights are kept aside and `unmerge_adapter` puts them back, bit by bit.

        Args:
            adapter_names: which, in the order of their product; the active ones when left out.
            safe_merge: check first that every merged weight is finite.

        Raises:
            ConfigError: there is no such adapter.
            HRAError: a weight is quantised, or (safe_merge) would not be finite; nothing is changed.
        """
        names = list(self.active_adapters if adapter_names is None else adapter_names)
        for name in names:
            self._check_known(name)
        if self.merged_adapters:
            warnings.warn("Adapters are merged already: they are unmerged first.", stacklevel=2)
            self.unmerge_adapter()
        layers = self.layers()
        merged = {name: weight for name in layers if (weight := layers[name].merged_weight(names)) is not None}
        if safe_merge and (broken := [name for name, weight in merged.items() if not weight.isfinite().all()]):
            raise HRAError(f"Merging {', '.join(names)} makes weights that are not finite, in {', '.join(broken[:8])}.")
        for name, weight in merged.items():
            layers[name].replace_weight(weight, names)

    def unmerge_adapter(self) -> None:
        """Put the original weights back."""
        for layer in self.layers().values():
            layer.restore_weight()

    def unload(self) -> nn.Module:
        """Take the adapters out and return the model as it was: the same modules, parameters, requires_grad flags."""
        self.unmerge_adapter()
        for name, layer in self.layers().items():
            self.model.set_submodule(name, layer.base_layer)
        for parameter in self._was_trainable:
            parameter.requires_grad_(True)
        self.peft_config = {}
        self.active_adapters = []
        return self.model

    @contextmanager
    def ejected(self) -> Iterator[dict[str, HRALayer]]:
        """Take the adapted layers out within a `with` block, for whatever must see the base model alone."""
        layers = self.layers()
        for name, layer in layers.items():
            self.model.set_submodule(name, layer.base_layer)
        try:
            yield layers
        finally:
            for name, layer in layers.items():
                self.model.set_submodule(name, layer)

    # Looking at it

    def layers(self) -> dict[str, HRALayer]:
        """Return the adapted layers by their names in the model."""
        return {name: module for name, module in self.model.named_modules() if isinstance(module, HRALayer)}

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Numbers of trainable and of all parameters."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.model.parameters()]
        return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Look like the model: what is not here is looked up there."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model":
                raise
            return getattr(super().__getattr__("model"), name)

    def _check_known(self, adapter_name: str) -> None:
        if adapter_name not in self.peft_config:
            known = ", ".join(map(repr, self.peft_config)) or "none"
            raise ConfigError(f"There is no adapter named {adapter_name!r} here; known are: {known}.")

    def _check_new_name(self, adapter_name: str) -> None:
        if adapter_name in self.peft_config:
            raise ConfigError(
                f"There is an adapter named {adapter_name!r} already: choose another name or delete it first."
            )
        if not re.fullmatch(r"[\w -]+", adapter_name) or hasattr(Columns(), adapter_name):
            raise ConfigError(f"{adapter_name!r} cannot name an adapter: use letters, digits, spaces, - and _.")

    # Files. `formats` stands above this package, so it is looked up when it is used.

    def save_pretrained(self, save_directory: Any, adapter_name: str = "default") -> None:
        """Write one adapter in PEFT's layout: see `hra_diffusion.formats.peft.save_adapter`."""
        importlib.import_module("hra_diffusion.formats.peft").save_adapter(self, save_directory, adapter_name)

    @classmethod
    def from_pretrained(
        cls, model: nn.Module, model_id: Any, adapter_name: str = "default", is_trainable: bool = False, **hub: Any
    ) -> HRAModel:
        """Read an adapter in PEFT's layout into a model: see `hra_diffusion.formats.peft.load_adapter`."""
        formats = importlib.import_module("hra_diffusion.formats.peft")
        return formats.load_adapter(model, model_id, adapter_name=adapter_name, is_trainable=is_trainable, **hub)


def _named_in(state_dict: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    known = {name for name, _ in model.named_modules()}
    names = [key.removesuffix(COLUMNS_SUFFIX) for key in state_dict]
    if strangers := [key for key, name in zip(state_dict, names, strict=True) if key == name or name not in known]:
        raise AdapterFileError(f"The adapter has weights for modules that the model lacks: {_some(strangers)}.")
    return names


def _given_columns(
    layers: Mapping[str, HRALayer], config: HRAConfig, state_dict: Mapping[str, Tensor]
) -> dict[str, nn.Parameter]:
    given = {name: state_dict[f"{name}{COLUMNS_SUFFIX}"] for name in layers}
    misfits = [
        f"{name} has {tuple(tensor.shape)} instead of {(layers[name].unfolded_size, config.r)}"
        for name, tensor in given.items()
        if tensor.shape != (layers[name].unfolded_size, config.r) or not tensor.is_floating_point()
    ]
    if misfits:
        made_for = f", made for {config.base_model_name_or_path}," if config.base_model_name_or_path else ""
        raise AdapterFileError(f"The adapter{made_for} does not fit the model: {_some(misfits)}.")
    return {name: _parameter(layers[name], tensor) for name, tensor in given.items()}


def _start_columns(layer: HRALayer, config: HRAConfig, generator: torch.Generator | None) -> nn.Parameter:
    if layer.device.type == "meta":
        return _parameter(layer, torch.empty(layer.unfolded_size, config.r, device="meta"))
    start = paired_columns if config.init_weights else random_columns
    return _parameter(layer, start(layer.unfolded_size, config.r, generator=generator))


def _parameter(layer: HRALayer, columns: Tensor) -> nn.Parameter:
    """Trainable columns on the base layer's device, in float32 or wider."""
    return nn.Parameter(columns.to(layer.device, layer.columns_dtype, copy=True))


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - 8} more" if len(items) > 8 else ""
    return ", ".join(items[:8]) + more
