"""HRAModel: puts adapters into any torch model, and takes them out again without a trace."""

import importlib
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.activation import AdaptedModel
from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.mixture import Acting
from hra_diffusion.adapter.targets import architecture_targets
from hra_diffusion.adapter.wrapper import Wrapper
from hra_diffusion.errors import ConfigError
from hra_diffusion.householder.gram_schmidt import orthogonality_penalty

# Whether save_pretrained was told which variant of a base model's files to write; only a pipeline says so.
_UNSAID: Final = "unsaid"


class HRAModel(AdaptedModel):
    """A model with HRA adapters in it; otherwise it looks and acts like the model.

    The model is changed in place: each target module is replaced by an adapted layer that holds it, and everything but
    the adapters is frozen. `unload` puts every module back, the same objects, and unfreezes what was trainable.

    A pipeline can hold it in the model's place: see `ModelProxy`.

    Args:
        model: any module.
        config: the adapter's settings, or those of several by name, of which `adapter_name` is to act.
        adapter_name: what to call the adapter.
        low_cpu_mem_usage: make the columns on the meta device, to be loaded later.
        state_dict: the adapter's tensors, `<module>.hra_u` (d, r) and so on: it goes into these modules and starts so.
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
        low_cpu_mem_usage: bool = False,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if any(isinstance(module, HRAModel | Wrapper) for module in model.modules()):
            raise ConfigError(
                "The model has HRA adapters already: use its HRAModel's add_adapter, or unload them first."
            )
        configs = {adapter_name: config} if isinstance(config, HRAConfig) else dict(config)
        if adapter_name not in configs:
            raise ConfigError(f"adapter_name {adapter_name!r} is none of the configured ones: {', '.join(configs)}.")
        super().__init__(model)
        self._trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        try:
            for name, each in configs.items():
                given = state_dict if name == adapter_name else None
                self.add_adapter(name, each, low_cpu_mem_usage, given, generator=generator)
            self.set_adapter(adapter_name)
        except BaseException:
            self.unload()
            raise

    # Adapters come and go

    def add_adapter(
        self,
        adapter_name: str,
        config: HRAConfig,
        low_cpu_mem_usage: bool = False,
        state_dict: Mapping[str, Tensor] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        """Put one more adapter into the model; it acts at once if it is the first. The arguments are the constructor's.

        Raises:
            AdapterFileError: `state_dict` does not fit the model; the model is unchanged.
            TargetError: the settings do not fit the model; it is unchanged.
            ConfigError: the name is taken or cannot be used, or the adapter clashes with another; it is unchanged.
        """
        self._check_new(adapter_name, config)
        if config.target_modules is None and state_dict is None:  # PEFT knows no custom for some of these
            config = replace(config, target_modules=architecture_targets(self.model))
        self._injection.add(adapter_name, config, state_dict, on_meta=low_cpu_mem_usage, generator=generator)
        self.model.requires_grad_(False)
        self.peft_config[adapter_name] = config
        self._act(names=self._acting.names or (adapter_name,), strengths={**self.strengths, adapter_name: 1.0})
        self._train_acting()
        if state_dict is None and config.init_weights and config.r % 2 and not config.apply_GS:
            warnings.warn(
                f"The rank r = {config.r} is odd: the adapter starts with a random reflection in each layer instead of "
                "at the base model, and its strength cannot be changed. Choose an even rank.",
                stacklevel=2,
            )

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter; modules that no adapter is left in are put back. If it acted, the first one left acts now.

        Raises:
            ConfigError: there is no such adapter, or it is merged.
        """
        self._check_known(adapter_name)
        if adapter_name in self.merged_adapters:
            raise ConfigError(f"The adapter {adapter_name!r} is merged into the model: unmerge it before deleting it.")
        self._injection.drop(adapter_name)
        self.model.requires_grad_(False)
        del self.peft_config[adapter_name]
        remaining = [name for name in self.active_adapters if name != adapter_name] or list(self.peft_config)[:1]
        self._act(names=tuple(remaining), strengths={name: self.strengths[name] for name in self.peft_config})
        self._train_acting()

    def pad_adapter(self, rank: int, adapter_name: str = "default") -> None:
        """Make room for adapters of up to `rank` reflections, for `swap_adapter`; identities fill it up.

        Raises:
            ConfigError: there is no such adapter, or its rank is higher.
        """
        config = self._ordinary_config(adapter_name)
        if rank < config.r:
            raise ConfigError(f"The adapter {adapter_name!r} has rank {config.r}: it cannot be padded to {rank}.")
        self._injection.pad(adapter_name, rank)
        self.peft_config[adapter_name] = config
        self._act()
        self._train_acting()

    def merge_and_unload(
        self, progressbar: bool = False, safe_merge: bool = False, adapter_names: Sequence[str] | None = None
    ) -> nn.Module:
        """Multiply adapters into the weights for good, and return the model without anything of HRA in it.

        Args:
            progressbar: show one, of layers.
            safe_merge: check first that every merged weight is finite.
            adapter_names: which, in the order of their product; what acts at present when left out.

        Raises:
            ConfigError: there is no such adapter.
            MergeError: a weight is quantized, or (safe_merge) would not be finite; nothing is changed.
        """
        self._merge(self._to_merge(adapter_names), safe_merge=safe_merge, progressbar=progressbar)
        return self._leave(keep_trained=True)

    def unload(self) -> nn.Module:
        """Take the adapters out and return the model as it was: the same modules, parameters, requires_grad flags."""
        self.unmerge_adapter()
        return self._leave(keep_trained=False)

    # Looking at it

    def get_nb_trainable_parameters(self) -> tuple[int, int]:
        """Numbers of trainable and of all parameters."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in self.model.parameters()]
        return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)

    def print_trainable_parameters(self) -> None:
        """Print them, and their share."""
        trainable, total = self.get_nb_trainable_parameters()
        print(
            f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {100 * trainable / total:.4f}"
        )

    def orthogonality_penalty(self) -> Tensor:
        """Σ over layers of ‖I − ÛᵀÛ‖_F for the active adapters: differentiable, to be added to a loss times λ.

        Columns that Gram–Schmidt makes orthogonal add nothing. The paper (arXiv 2405.17484) takes λ = 1e-3 for subjects
        and 1e-5 for control.
        """
        alike: defaultdict[tuple[torch.Size, torch.device], list[Tensor]] = defaultdict(list)
        for layer in self.layers().values():
            for name, columns in layer.hra_u.items():
                if name in self.active_adapters and not self.peft_config[name].apply_GS:
                    alike[columns.shape, columns.device].append(columns)
        sums = [orthogonality_penalty(torch.stack(group)).sum() for group in alike.values()]
        return torch.stack([each.to(sums[0].device) for each in sums]).sum() if sums else torch.zeros(())

    # Tensors and files. `formats` stands above this package, so it is looked up when it is used.

    def adapter_state_dict(self, adapter_name: str = "default") -> tuple[HRAConfig, dict[str, Tensor]]:
        """Return an adapter as an ordinary one: its settings, and its tensors by PEFT's names, copied to the CPU.

        Columns are those of the chain itself, after Gram–Schmidt, with the anchor in front, and without padding.

        Raises:
            ConfigError: there is no such adapter.
        """
        config = self._ordinary_config(adapter_name)
        return config, self._injection.state(adapter_name, config).flat()

    def swap_adapter(self, config: HRAConfig, state_dict: Mapping[str, Tensor], adapter_name: str = "default") -> None:
        """Overwrite an adapter's columns in place: nothing is injected again, and nothing compiled again.

        The new adapter's rank may be lower (see `pad_adapter`), and layers that it does not adapt are left at the base.

        Raises:
            ConfigError: there is no such adapter.
            AdapterFileError: the tensors do not fit; nothing is changed.
        """
        self._check_known(adapter_name)
        self._check_strength(adapter_name, self.strengths[adapter_name], config)
        if config.r % 2 and self._acting.as_mean:
            raise ConfigError(
                f"An adapter of the odd rank {config.r} cannot take part in a mean: let a product act first."
            )
        self._injection.swap(adapter_name, config, state_dict)
        self.peft_config[adapter_name] = replace(config, apply_GS=False)
        self._act()
        if adapter_name in self.merged_adapters:
            self._merge(self._merged)

    def save_pretrained(
        self,
        save_directory: Any,
        adapter_name: str = "default",
        *,
        variant: str | None = _UNSAID,
        safe_serialization: bool = True,
        max_shard_size: Any = None,
    ) -> None:
        """Write one adapter in PEFT's layout: see `hra_diffusion.formats.peft.save_adapter`.

        A pipeline that holds this in its model's place saves it with a `variant`, be it None. Then the base model is
        written, without the adapters, and the last three arguments are those of its own save_pretrained.
        """
        if variant == _UNSAID:
            importlib.import_module("hra_diffusion.formats.peft").save_adapter(self, save_directory, adapter_name)
            return
        options = {"variant": variant, "safe_serialization": safe_serialization, "max_shard_size": max_shard_size}
        self.save_base(save_directory, **options)

    @classmethod
    def from_pretrained(
        cls, model: nn.Module, model_id: Any, adapter_name: str = "default", is_trainable: bool = False, **hub: Any
    ) -> "HRAModel":
        """Read an adapter in PEFT's layout into a model: see `hra_diffusion.formats.peft.load_adapter`."""
        formats = importlib.import_module("hra_diffusion.formats.peft")
        return formats.load_adapter(model, model_id, adapter_name=adapter_name, is_trainable=is_trainable, **hub)

    def _ordinary_config(self, adapter_name: str) -> HRAConfig:
        """Settings of the plain chain that an adapter amounts to."""
        self._check_known(adapter_name)
        config = self.peft_config[adapter_name]
        anchored = any(adapter_name in layer.hra_anchor for layer in self.layers().values())
        return replace(config, r=2 * config.r if anchored else config.r, apply_GS=False)

    def _leave(self, *, keep_trained: bool) -> nn.Module:
        """Take everything out of the model, but leave merged weights, and trained parts if they are to be kept."""
        self._injection.remove(keep_trained=keep_trained)
        self.leave()
        for hook in self._hooks:
            hook.remove()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self._trainable)
        self._configs, self._acting, self._merged = {}, Acting(), ()
        return self.model

    def _check_new(self, adapter_name: str, config: HRAConfig) -> None:
        if adapter_name in self.peft_config:
            raise ConfigError(f"There is an adapter named {adapter_name!r} already: choose another name or delete it.")
        if not re.fullmatch(r"[\w -]+", adapter_name):
            raise ConfigError(f"{adapter_name!r} cannot name an adapter: use letters, digits, spaces, - and _.")
        with_bias = [name for name, other in self.peft_config.items() if other.bias != "none"]
        if config.bias != "none" and with_bias:
            raise ConfigError(f"Only one adapter can train biases, and {with_bias[0]!r} does: set bias to 'none'.")
