"""HRAModel: puts adapters into any torch model, and takes them out again without a trace."""

import importlib
import inspect
import math
import re
import warnings
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.blending import Acting, Mixture, factor_together
from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.injection import Injection
from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.adapter.merging import merge_layers
from hra_diffusion.adapter.proxy import ModelProxy
from hra_diffusion.adapter.wrapper import Wrapper
from hra_diffusion.errors import ConfigError
from hra_diffusion.householder.gram_schmidt import orthogonality_penalty

# Whether save_pretrained was told which variant of a base model's files to write; only a pipeline says so.
_UNSAID: Final = "unsaid"


class HRAModel(ModelProxy):
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
        self.peft_config: dict[str, HRAConfig] = {}
        self._acting = Acting()
        self._merged: Mixture = ()
        self._injection = Injection(model)
        self._trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._hooks = [
            model.register_forward_pre_hook(self._before_pass),
            model.register_forward_hook(self._after_pass, always_call=True),
        ]
        if callable(getattr(model, "save_pretrained", None)):
            model.save_pretrained = self.save_base
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
        self._injection.add(adapter_name, config, state_dict, on_meta=low_cpu_mem_usage, generator=generator)
        self.peft_config[adapter_name] = config
        self._act(names=self._acting.names or (adapter_name,), strengths={**self.strengths, adapter_name: 1.0})
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
        del self.peft_config[adapter_name]
        remaining = [name for name in self.active_adapters if name != adapter_name] or list(self.peft_config)[:1]
        self._act(names=tuple(remaining), strengths={name: self.strengths[name] for name in self.peft_config})

    def pad_adapter(self, rank: int, adapter_name: str = "default") -> None:
        """Make room for adapters of up to `rank` reflections, for `swap_adapter`; identities fill it up.

        Raises:
            ConfigError: there is no such adapter, or its rank is higher.
        """
        self._check_known(adapter_name)
        config = self.peft_config[adapter_name]
        if rank < config.r:
            raise ConfigError(f"The adapter {adapter_name!r} has rank {config.r}: it cannot be padded to {rank}.")
        for layer in self.layers().values():
            if adapter_name in layer.hra_u:
                columns = layer.chain_columns(adapter_name).detach()
                layer.drop_adapter(adapter_name)
                layer.put_adapter(adapter_name, nn.functional.pad(columns, (0, rank - columns.shape[1])))
        self._act()

    # Which of them act

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Let one adapter act, or the ordered product of several, H = H_first ⋯ H_last; the others rest, frozen.

        Args:
            adapter_name: one or several names.
            inference_mode: freeze the acting ones, too.

        Raises:
            ConfigError: there is no such adapter.
        """
        names = (adapter_name,) if isinstance(adapter_name, str) else tuple(adapter_name)
        self._check_known(*names)
        self._unmerge_to_change()
        self._act(names=names, as_mean=False, inference_mode=inference_mode)

    def set_adapters(
        self,
        adapter_names: Sequence[str],
        strengths: Sequence[float] | None = None,
        combine: Literal["product", "lie"] = "product",
    ) -> None:
        """Let several adapters act together, each with its strength.

        Args:
            adapter_names: which; for a product, in its order.
            strengths: one real number each; as they are, when left out.
            combine: "product" for H_first ⋯ H_last; "lie" for exp(Σ sᵢ log Hᵢ), which has no order.

        Raises:
            ConfigError: there is no such adapter, or a strength cannot be had; nothing is changed.
        """
        if combine not in ("product", "lie"):
            raise ConfigError(f"combine must be 'product' or 'lie'; found {combine!r}.")
        if strengths is not None and len(strengths) != len(adapter_names):
            raise ConfigError(f"{len(adapter_names)} adapters need as many strengths; found {len(strengths)}.")
        self._check_known(*adapter_names)
        chosen = dict(zip(adapter_names, strengths or (), strict=strengths is not None))
        self._check_strengths(chosen)
        self._unmerge_to_change()
        self._act(names=tuple(adapter_names), strengths={**self.strengths, **chosen}, as_mean=combine == "lie")

    def set_strength(self, strength: float, adapter_name: str = "default") -> None:
        """Move an adapter along its geodesic: 0 is the base model, 1 the adapter, and any real number is orthogonal.

        At strengths other than 1, gradients pass through the adapter but do not reach it.

        Raises:
            ConfigError: there is no such adapter, the strength is not finite, or the rank is odd and the strength is
                neither 0 nor 1; nothing is changed.
        """
        self._check_known(adapter_name)
        self._check_strengths({adapter_name: strength})
        self._act(strengths={**self.strengths, adapter_name: strength})
        if adapter_name in self.merged_adapters:
            self._merge(tuple(tuple((name, self.strengths[name]) for name, _ in blend) for blend in self._merged))

    @property
    def active_adapters(self) -> list[str]:
        """Names of the adapters that act, in the order of their product."""
        return list(self._acting.names)

    @property
    def strengths(self) -> dict[str, float]:
        """Strengths of all adapters, acting or not."""
        return dict(self._acting.strengths)

    @property
    def active_adapter(self) -> str | list[str]:
        """The adapter that acts, or the list of them when there are several or none."""
        return self.active_adapters[0] if len(self.active_adapters) == 1 else self.active_adapters

    def enable_adapter_layers(self) -> None:
        """Let the active adapters act."""
        self._act(enabled=True)

    def disable_adapter_layers(self) -> None:
        """Act as the base model until `enable_adapter_layers`; merged adapters are unmerged."""
        self.unmerge_adapter()
        self._act(enabled=False)

    @contextmanager
    def disable_adapter(self) -> Generator[None]:
        """Act as the base model within a `with` block."""
        acting, merged = self._acting, self._merged
        self.disable_adapter_layers()
        try:
            yield
        finally:
            self._act(enabled=acting.enabled)
            self._merge(merged)

    # Merging and unloading

    @property
    def merged_adapters(self) -> list[str]:
        """Names of the adapters that are merged into the weights at present."""
        return list(dict.fromkeys(name for blend in self._merged for name, _ in blend))

    def merge_adapter(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """Multiply adapters into the weights, so that a pass costs what the base model's does.

        The original weights are kept aside and `unmerge_adapter` puts them back, bit by bit. What is merged already
        stays, and comes first in the product.

        Args:
            adapter_names: which, in the order of their product; what acts at present when left out.
            safe_merge: check first that every merged weight is finite.

        Raises:
            ConfigError: there is no such adapter.
            MergeError: a weight is quantised, or (safe_merge) would not be finite; nothing is changed.
        """
        self._merge(self._to_merge(adapter_names), safe_merge=safe_merge)

    def unmerge_adapter(self) -> None:
        """Put the original weights back."""
        for layer in self.layers().values():
            layer.unmerge()
        self._merged = ()

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
            MergeError: a weight is quantised, or (safe_merge) would not be finite; nothing is changed.
        """
        self._merge(self._to_merge(adapter_names), safe_merge=safe_merge, progressbar=progressbar)
        return self._leave(keep_trained=True)

    def unload(self) -> nn.Module:
        """Take the adapters out and return the model as it was: the same modules, parameters, requires_grad flags."""
        self.unmerge_adapter()
        return self._leave(keep_trained=False)

    @contextmanager
    def ejected(self) -> Generator[nn.Module]:
        """Give the model without its adapters within a `with` block, for whatever must see the base model alone."""
        enabled = self._acting.enabled
        self._act(enabled=False)
        try:
            with self._injection.ejected() as base:
                yield base
        finally:
            self._act(enabled=enabled)

    # Looking at it

    def layers(self) -> dict[str, HRALayer]:
        """Return the adapted layers by their names in the model."""
        return dict(self._injection.layers)

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

        An anchored chain of r columns becomes an ordinary one of 2 r, and padding is left out.

        Raises:
            ConfigError: there is no such adapter.
        """
        self._check_known(adapter_name)
        config = self.peft_config[adapter_name]
        state = self._injection.state(adapter_name, config)
        if config.apply_GS and next(iter(state.columns.values())).shape[1] == 2 * config.r:
            config = replace(config, r=2 * config.r, apply_GS=False)
        return config, state.flat()

    def swap_adapter(self, config: HRAConfig, state_dict: Mapping[str, Tensor], adapter_name: str = "default") -> None:
        """Overwrite an adapter's columns in place: nothing is injected again, and nothing compiled again.

        The new adapter's rank may be lower (see `pad_adapter`), and layers that it does not adapt are left at the base.

        Raises:
            ConfigError: there is no such adapter.
            AdapterFileError: the tensors do not fit; nothing is changed.
        """
        self._check_known(adapter_name)
        self._injection.swap(adapter_name, config, state_dict)
        self.peft_config[adapter_name] = replace(config, apply_GS=False)
        self._act()

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
        known = inspect.signature(type(self.model).save_pretrained).parameters
        self.save_base(save_directory, **{k: v for k, v in options.items() if k in known and (k, v) != (k, None)})

    def save_base(self, *args: Any, **kwargs: Any) -> Any:
        """Save the model by its own save_pretrained, without the adapters, but with what is merged into its weights."""
        with self.ejected() as base:
            return type(base).save_pretrained(base, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls, model: nn.Module, model_id: Any, adapter_name: str = "default", is_trainable: bool = False, **hub: Any
    ) -> "HRAModel":
        """Read an adapter in PEFT's layout into a model: see `hra_diffusion.formats.peft.load_adapter`."""
        formats = importlib.import_module("hra_diffusion.formats.peft")
        return formats.load_adapter(model, model_id, adapter_name=adapter_name, is_trainable=is_trainable, **hub)

    # Within

    def _act(self, **changes: Any) -> None:
        """Change which adapters act and how, all or nothing, and let those train that do."""
        before, acting = self._acting, replace(self._acting, **changes)
        try:
            self._injection.act(acting)
        except ConfigError:
            self._injection.act(before)
            raise
        self._acting = acting
        self.model.requires_grad_(False)
        for name in acting.names:
            if not acting.inference_mode and not self.peft_config[name].inference_mode:
                for parameter in self._injection.trained_parameters(name):
                    parameter.requires_grad_(True)

    def _to_merge(self, adapter_names: Sequence[str] | None) -> Mixture:
        self._check_known(*adapter_names or ())
        wanted = self._acting.mixture if adapter_names is None else self._acting.product(adapter_names)
        if any(blend in self._merged for blend in wanted):
            warnings.warn("Some of the adapters are merged already; the others are merged now.", stacklevel=3)
        return self._merged + tuple(blend for blend in wanted if blend not in self._merged)

    def _merge(self, mixture: Mixture, **options: bool) -> None:
        merge_layers(self._injection.layers, mixture, **options)
        self._merged = mixture

    def _leave(self, *, keep_trained: bool) -> nn.Module:
        """Take everything out of the model, but leave merged weights, and trained parts if they are to be kept."""
        self._injection.remove(keep_trained=keep_trained)
        for hook in self._hooks:
            hook.remove()
        self.model.__dict__.pop("save_pretrained", None)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self._trainable)
        self.peft_config, self._acting, self._merged = {}, Acting(), ()
        return self.model

    def _before_pass(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        factor_together(self._injection.layers.values())
        weak = [name for name in self._acting.names if self._acting.strengths[name] != 1]
        if weak and self.training and torch.is_grad_enabled() and not self._acting.inference_mode:
            warnings.warn(f"Adapters at a strength other than 1 are not trained: {', '.join(weak)}.", stacklevel=2)

    def _after_pass(self, *_: Any) -> None:
        for layer in self._injection.layers.values():
            layer.factored = None

    def _unmerge_to_change(self) -> None:
        if self._merged:
            warnings.warn("Adapters are merged into the model: they are unmerged, to let others act.", stacklevel=3)
            self.unmerge_adapter()

    def _check_known(self, *adapter_names: str) -> None:
        for name in adapter_names:
            if name not in self.peft_config:
                known = ", ".join(map(repr, self.peft_config)) or "none"
                raise ConfigError(f"There is no adapter named {name!r} here; known are: {known}.")

    def _check_new(self, adapter_name: str, config: HRAConfig) -> None:
        if adapter_name in self.peft_config:
            raise ConfigError(f"There is an adapter named {adapter_name!r} already: choose another name or delete it.")
        if not re.fullmatch(r"[\w -]+", adapter_name):
            raise ConfigError(f"{adapter_name!r} cannot name an adapter: use letters, digits, spaces, - and _.")
        with_bias = [name for name, other in self.peft_config.items() if other.bias != "none"]
        if config.bias != "none" and with_bias:
            raise ConfigError(f"Only one adapter can train biases, and {with_bias[0]!r} does: set bias to 'none'.")

    def _check_strengths(self, strengths: Mapping[str, float]) -> None:
        for name, strength in strengths.items():
            if not math.isfinite(strength):
                raise ConfigError(f"The strength of {name!r} must be a finite number; found {strength}.")
            config = self.peft_config[name]
            if config.r % 2 and not config.apply_GS and strength not in (0, 1):
                raise ConfigError(
                    f"The adapter {name!r} has the odd rank {config.r}: its determinant is −1, and its strength can be "
                    f"0 or 1 only; found {strength}. Train with an even rank."
                )
