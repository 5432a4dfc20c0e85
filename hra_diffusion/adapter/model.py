"""Adapters in any torch model, added and removed without a trace."""

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.activation import Activation, check_strength
from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.diffusers_verbs import DiffusersVerbs
from hra_diffusion.adapter.heads import with_heads
from hra_diffusion.adapter.injection import Injection
from hra_diffusion.adapter.peft_names import PeftNames
from hra_diffusion.adapter.proxy import ModelProxy
from hra_diffusion.adapter.strengths import Strength
from hra_diffusion.adapter.targets import architecture_targets
from hra_diffusion.adapter.wrapper import Wrapper
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.householder.gram_schmidt import orthogonality_penalty
from hra_diffusion.text import nearest


class AdaptedModel(DiffusersVerbs, PeftNames, ModelProxy):
    """A model with HRA adapters; see `hra_diffusion.model.HRAModel`, which adds files.

    The model is changed in place: an adapted layer replaces each target module and holds it, and everything except the
    adapters is frozen. `unload` restores every module, the same objects, and their `requires_grad`.

    A pipeline can hold an adapted model as a component: see `ModelProxy`.

    Args:
        model: any module.
        config: the adapter's settings, or those of several adapters by name.
        adapter_name: the adapter's name; with several, the active one.
        low_cpu_mem_usage: create the columns on the meta device, to be loaded later.
        state_dict: the adapter's tensors, `<module>.hra_u` (d, r) and so on; they choose the modules.
        autocast_adapter_dtype: keep the columns in float32; False for the half precision of their layer's weight.
        generator: the source of random columns; torch's default generator if None.

    Attributes:
        file_metadata: metadata of the safetensors file of each loaded adapter that is not trained, to be saved again.

    Raises:
        AdapterFileError: `state_dict` does not fit the model.
        TargetError: the settings match no module, or one that cannot be adapted.
        ConfigError: the model is adapted already, or the name is invalid.
    """

    def __init__(
        self,
        model: nn.Module,
        config: HRAConfig | Mapping[str, HRAConfig],
        adapter_name: str = "default",
        low_cpu_mem_usage: bool = False,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        autocast_adapter_dtype: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        if any(isinstance(module, AdaptedModel | Wrapper) for module in model.modules()):
            raise ConfigError(
                "The model has HRA adapters already: use its HRAModel's add_adapter, or unload them first."
            )
        configs = {adapter_name: config} if isinstance(config, HRAConfig) else dict(config)
        if adapter_name not in configs:
            raise ConfigError(f"adapter_name {adapter_name!r} is none of the configured ones: {', '.join(configs)}.")
        super().__init__(model)
        self._injection = Injection(model)
        self._activation = Activation(self._injection)
        self.file_metadata: dict[str, dict[str, str]] = {}
        self._trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        try:
            for name, settings in configs.items():
                tensors = state_dict if name == adapter_name else None
                self.add_adapter(
                    name,
                    settings,
                    low_cpu_mem_usage,
                    tensors,
                    autocast_adapter_dtype=autocast_adapter_dtype,
                    generator=generator,
                )
            self.set_adapter(adapter_name)
        except BaseException:
            self.unload()
            raise

    def add_adapter(
        self,
        adapter_name: str,
        peft_config: HRAConfig,
        low_cpu_mem_usage: bool = False,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        autocast_adapter_dtype: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        """Add an adapter; the first one becomes active. The arguments are those of the constructor.

        Raises:
            AdapterFileError: `state_dict` does not fit the model; the model is unchanged.
            TargetError: the settings do not fit the model; it is unchanged.
            ConfigError: the name is taken or invalid, or the adapter conflicts with another; the model is unchanged.
        """
        self._activation.check_changeable()
        self._check_new(adapter_name, peft_config)
        config = with_heads(peft_config, self.model) if state_dict is None else peft_config
        if config.target_modules is None and state_dict is None:  # PEFT has no default for some architectures.
            config = replace(config, target_modules=architecture_targets(self.model))
        self._injection.add(
            adapter_name,
            config,
            state_dict,
            on_meta=low_cpu_mem_usage,
            half=not autocast_adapter_dtype,
            generator=generator,
        )
        config.mark_used()
        self.peft_config[adapter_name] = config
        self._activate(tuple(self.active_adapters) or (adapter_name,), {**self.strengths, adapter_name: 1.0})
        if state_dict is None and config.init_weights and config.odd_rank and not config.apply_GS:
            warnings.warn(
                f"The rank r = {config.odd_rank} is odd: the adapter starts with a random reflection in each layer "
                "instead of at the base model, and its strength cannot be changed. Choose an even rank.",
                stacklevel=2,
            )

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter, and restore modules without any adapter left; the first one left becomes active if needed.

        Raises:
            ConfigError: the adapter is unknown or merged.
        """
        self._activation.check_changeable()
        if adapter_name not in self.peft_config:
            raise ConfigError(f"Adapter {adapter_name} does not exist{nearest(adapter_name, self.peft_config)}")
        if adapter_name in self.merged_adapters:
            raise ConfigError(
                f"Cannot delete adapter(s) {[adapter_name]} while they are merged. Please unmerge them first."
            )
        self._injection.remove(adapter_name)
        self.file_metadata.pop(adapter_name, None)
        del self.peft_config[adapter_name]
        left = [name for name in self.active_adapters if name != adapter_name] or list(self.peft_config)[:1]
        self._activate(tuple(left), {name: self.strengths[name] for name in self.peft_config})

    def pad_adapter(self, rank: int, adapter_name: str = "default") -> None:
        """Append zero columns, so that `swap_adapter` accepts adapters of up to `rank` reflections.

        Raises:
            ConfigError: the adapter is unknown, or its rank is higher.
        """
        self._activation.check_changeable()
        config = self._plain_config(adapter_name)
        if rank < config.largest_rank:
            raise ConfigError(
                f"The adapter {adapter_name!r} has rank {config.largest_rank}: it cannot be padded to {rank}."
            )
        self._injection.pad(adapter_name, rank)
        self.peft_config[adapter_name] = config
        self._activation.change()
        self._activation.train_active()

    def swap_adapter(self, config: HRAConfig, state_dict: Mapping[str, Tensor], adapter_name: str = "default") -> None:
        """Overwrite an adapter's columns in place; nothing is injected or compiled again.

        The new adapter's rank may be lower (see `pad_adapter`). Layers that it does not adapt become base layers.

        Raises:
            ConfigError: the adapter is unknown, or the new rank is odd and the strength or a mean forbids it.
            AdapterFileError: the tensors do not fit; nothing is changed.
        """
        self._activation.check_changeable()
        self._activation.check_known(adapter_name)
        check_strength(adapter_name, self.strengths[adapter_name], config)
        if config.odd_rank and self._activation.active.combine == "mean":
            raise ConfigError(
                f"An adapter of the odd rank {config.odd_rank} cannot take part in a mean: activate a product first."
            )
        self._injection.swap(adapter_name, config, state_dict)
        self.peft_config[adapter_name] = replace(config, apply_GS=False)
        self._activation.change()
        if adapter_name in self.merged_adapters:
            self._activation.merge(self._activation.merged)

    def restore_adapter(self, adapter_name: str, config: HRAConfig, state_dict: Mapping[str, Tensor]) -> None:
        """Overwrite an adapter's columns, biases and copies in place with those of the same adapter at another time.

        Its settings and its `requires_grad` stay; an optimizer keeps its parameters.

        Raises:
            ConfigError: the adapter is unknown.
            AdapterFileError: the tensors do not fit; nothing is changed.
        """
        self._activation.check_changeable()
        if config.r != self._plain_config(adapter_name).r:
            raise AdapterFileError(
                f"The adapter {adapter_name!r} has rank {self.peft_config[adapter_name].r}, and the file's another, "
                f"{config.r}: load it under another name."
            )
        self._injection.reload(adapter_name, self.peft_config[adapter_name], state_dict)
        self._activation.change()

    @contextmanager
    def parameters_replaced(self, values: Mapping[str, Tensor]) -> Generator[None]:
        """Give trained parameters other values within a `with` block, by their names in this object."""
        replaced = [
            (p, p.data, values[name]) for name, p in self.named_parameters() if name in values and p.requires_grad
        ]
        try:
            for parameter, data, value in replaced:
                parameter.data = value.to(data.device, data.dtype)
            yield
        finally:
            for parameter, data, _ in replaced:
                parameter.data = data

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: Sequence[str] | None = None
    ) -> nn.Module:
        """Merge adapters into the weights for good, and return the model without any part of HRA.

        Args:
            progressbar: show the progress over the layers.
            safe_merge: check first that every merged weight is finite.
            adapter_names: names in the order of their product; the active adapters by default.

        Raises:
            ConfigError: an adapter is unknown or repeated, or the adapters are disabled.
            MergeError: a weight is quantized, or (safe_merge) not finite; nothing is changed.
        """
        mixture = self._activation.mixture_to_merge(adapter_names)
        self._activation.merge(mixture, safe_merge=safe_merge, progressbar=progressbar)
        return self._remove_all(keep_trained=True)

    def unload(self) -> nn.Module:
        """Remove all adapters, and return the original model: the same modules, parameters, and `requires_grad`."""
        self.unmerge_adapter()
        return self._remove_all(keep_trained=False)

    def orthogonality_penalty(self) -> Tensor:
        """Return Σ ‖I − ÛᵀÛ‖_F over the layers of active adapters: differentiable, to be added to a loss times λ.

        Columns after Gram–Schmidt add nothing. The paper (arXiv 2405.17484) takes λ = 1e-3 for subjects and 1e-5 for
        control.
        """
        groups: defaultdict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
        for layer in self.adapted_layers().values():
            for name, columns in layer.hra_u.items():
                if name in self.active_adapters and not self.peft_config[name].apply_GS:
                    groups[columns.shape, columns.device].append(columns)
        sums = [orthogonality_penalty(torch.stack(group)).sum() for group in groups.values()]
        return torch.stack([total.to(sums[0].device) for total in sums]).sum() if sums else torch.zeros(())

    def adapter_state_dict(self, adapter_name: str = "default") -> tuple[HRAConfig, dict[str, Tensor]]:
        """Return an adapter as a plain chain: its settings, and its tensors by PEFT's names, copied to the CPU.

        Columns are those of the chain: after Gram–Schmidt, behind their anchor, and without padding.

        Raises:
            ConfigError: the adapter is unknown.
        """
        config = self._plain_config(adapter_name)
        return config, self._injection.state(adapter_name, config).flat()

    def adapter_tensor_names(self, adapter_name: str = "default") -> tuple[HRAConfig, set[str]]:
        """Return an adapter's settings as a plain chain, and the names of its tensors, which may be on any device.

        Raises:
            ConfigError: the adapter is unknown.
        """
        config = self._plain_config(adapter_name)
        return config, set(self._injection.state(adapter_name, config).named())

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the model; `generate` takes `adapter_names`, too."""
        value = super().__getattr__(name)
        return partial(self.call_model, value) if name == "generate" else value

    def call_model(
        self, function: Callable[..., Any], *args: Any, adapter_names: Sequence[str] | None = None, **kwargs: Any
    ) -> Any:
        """Call a method of the model, with another adapter for each example if they are named."""
        if adapter_names is None:
            return function(*args, **kwargs)
        with self._activation.rows(adapter_names):
            return function(*args, **kwargs)

    def _plain_config(self, adapter_name: str) -> HRAConfig:
        """Return the settings of an adapter as a plain chain."""
        self._activation.check_known(adapter_name)
        config = self.peft_config[adapter_name]
        anchored = any(adapter_name in layer.columns.anchors for layer in self.adapted_layers().values())
        factor = 2 if anchored else 1
        ranks = {pattern: factor * r for pattern, r in config.rank_pattern.items()}
        return replace(config, r=factor * config.r, rank_pattern=ranks, apply_GS=False)

    def _activate(self, names: tuple[str, ...], strengths: Mapping[str, Strength]) -> None:
        """Activate adapters after one was added or deleted, and freeze everything else."""
        self.model.requires_grad_(False)
        self._activation.change(names=names, strengths=strengths)
        self._activation.train_active()

    def _remove_all(self, *, keep_trained: bool) -> nn.Module:
        """Remove all adapters; merged weights stay, and active biases and copies with `keep_trained`."""
        self._injection.remove_all(keep_trained=keep_trained)
        self._activation.reset()
        self._leave()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self._trainable)
        return self.model

    def _check_new(self, adapter_name: str, config: HRAConfig) -> None:
        if adapter_name in self.peft_config:
            raise ConfigError(f"There is an adapter named {adapter_name!r} already: choose another name or delete it.")
        if not re.fullmatch(r"[\w -]+", adapter_name):
            raise ConfigError(f"{adapter_name!r} cannot name an adapter: use letters, digits, spaces, - and _.")
        with_bias = [name for name, other in self.peft_config.items() if other.bias != "none"]
        if config.bias != "none" and with_bias:
            raise ConfigError(f"Only one adapter can train biases, and {with_bias[0]!r} does: set bias to 'none'.")


def ejected(model: nn.Module) -> AbstractContextManager[nn.Module]:
    """Yield a model without its adapters within a `with` block; any other model unchanged."""
    return model._ejected() if isinstance(model, AdaptedModel) else nullcontext(model)  # pyright: ignore[reportPrivateUsage]
