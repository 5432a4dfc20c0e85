"""PEFT's names for an adapted model: the base model, status reports, and what trainers ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from hra_diffusion.adapter.activation import Activation
from hra_diffusion.adapter.adapter_mixin import one_or_several
from hra_diffusion.adapter.config import HRAConfig, PeftType
from hra_diffusion.adapter.injection import Injection

Tri = bool | Literal["irregular"]
"""Whether something holds for all layers, none, or some."""


@dataclass(frozen=True, kw_only=True)
class _Status:
    """The adapters of a layer or a model: fields of both statuses of PEFT."""

    enabled: Tri
    active_adapters: list[str]
    merged_adapters: list[str]
    requires_grad: Mapping[str, Tri]
    available_adapters: list[str]
    devices: dict[str, list[str]]


@dataclass(frozen=True, kw_only=True)
class LayerStatus(_Status):
    """The adapters of one layer, as in PEFT's TunerLayerStatus."""

    name: str
    module_type: str


@dataclass(frozen=True, kw_only=True)
class ModelStatus(_Status):
    """The adapters of a model, as in PEFT's TunerModelStatus."""

    base_model_type: str
    adapter_model_type: str
    peft_types: dict[str, str]
    trainable_params: int
    total_params: int
    num_adapter_layers: int


class PeftNames:
    """Methods and attributes of PEFT's PeftModel beside those of :class:`AdapterMixin`."""

    model: nn.Module
    _injection: Injection
    _activation: Activation

    @property
    def base_model(self) -> Any:
        """The object itself: PEFT's users read the adapted model as ``base_model.model``."""
        return self

    def get_base_model(self) -> Any:
        """Return the model with the adapted layers in it."""
        return self.model

    @property
    def active_peft_config(self) -> HRAConfig:
        """The settings of the first active adapter, or of the first one while none is active."""
        names = (*self._activation.active.names, *self._activation.configs)
        return self._activation.configs[names[0]]

    @property
    def peft_type(self) -> PeftType:
        """The kind of the adapters in PEFT's words."""
        return PeftType.HRA

    @property
    def prefix(self) -> str:
        """The beginning of the names of adapters' parameters in a layer."""
        return "hra_"

    def supports_lora_conversion(self) -> bool:
        """Return False: PEFT's `convert_to_lora` needs layers of PEFT; `hra-export-lora` converts files."""
        return False

    @property
    def targeted_module_names(self) -> list[str]:
        """Names of the adapted modules."""
        return list(self._injection.layers)

    @property
    def has_active_enabled_adapter(self) -> bool:
        """Whether an adapter is active and not disabled."""
        return self._activation.active.enabled and bool(self._activation.active.names)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Train or freeze the parameters of adapters, active or not.

        Raises:
            ConfigError: an adapter is unknown.
        """
        names = one_or_several(adapter_names)
        self._activation.check_known(*names)
        for name in names:
            for parameter in self._injection.trained_parameters(name):
                parameter.requires_grad = requires_grad

    def prepare_model_for_gradient_checkpointing(self, model: Any = None) -> Any:
        """Let the embeddings' output require gradients, which reentrant checkpoints need of their input."""
        model = self.model if model is None else model
        if hasattr(model, "enable_input_require_grads"):
            model.enable_input_require_grads()
        elif hasattr(model, "get_input_embeddings"):
            model.get_input_embeddings().register_forward_hook(_require_grad)
        return model

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Return the numbers of trainable and of all parameters."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.model.parameters()]
        return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)

    def print_trainable_parameters(self) -> None:
        """Print the numbers of trainable and of all parameters, and their ratio in percent."""
        trainable, total = self.get_nb_trainable_parameters()
        print(
            f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}"
        )

    def get_layer_status(self) -> list[LayerStatus]:
        """Return the adapters of each adapted layer, active, merged and trainable."""
        active = list(self._activation.active.names)
        return [
            LayerStatus(
                name=f"model.{name}",
                module_type=type(layer).__name__,
                enabled=layer.enabled,
                active_adapters=active,
                merged_adapters=[adapter for blend in layer.merged for adapter, _ in blend],
                requires_grad={adapter: columns.requires_grad for adapter, columns in layer.hra_u.items()},
                available_adapters=sorted(layer.hra_u),
                devices={adapter: [columns.device.type] for adapter, columns in layer.hra_u.items()},
            )
            for name, layer in self._injection.layers.items()
        ]

    def get_model_status(self) -> ModelStatus:
        """Return the adapters of the model, active, merged and trainable."""
        layers, configs = self.get_layer_status(), self._activation.configs
        trainable, total = self.get_nb_trainable_parameters()
        trains: dict[str, Tri] = {
            name: _all_or_some([layer.requires_grad[name] for layer in layers if name in layer.requires_grad])
            for name in configs
        }
        devices = {
            name: sorted({device for layer in layers for device in layer.devices.get(name, [])}) for name in configs
        }
        return ModelStatus(
            base_model_type=type(self.model).__name__,
            adapter_model_type=type(self).__name__,
            peft_types=dict.fromkeys(configs, "HRA"),
            trainable_params=trainable,
            total_params=total,
            num_adapter_layers=len(layers),
            enabled=_all_or_some([layer.enabled for layer in layers]),
            active_adapters=list(self._activation.active.names),
            merged_adapters=self._activation.merged_names,
            requires_grad=trains,
            available_adapters=sorted(configs),
            devices=devices,
        )


def _require_grad(_: nn.Module, __: Any, output: Tensor) -> None:
    output.requires_grad_(True)


def _all_or_some(values: Sequence[Tri]) -> Tri:
    return "irregular" if len(set(values)) > 1 else bool(values and values[0])
