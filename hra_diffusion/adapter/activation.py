"""The activation of a model's adapters: which ones are active, how strongly, and which ones are merged."""

import math
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.injection import Injection
from hra_diffusion.adapter.masks import MaskedRows
from hra_diffusion.adapter.merging import merge_layers
from hra_diffusion.adapter.mixture import ActiveAdapters, Mixture, ModelMixture, mixture_in
from hra_diffusion.adapter.passes import factor_in_graph, factor_together, leave_graph
from hra_diffusion.adapter.rows import BASE, Rows
from hra_diffusion.adapter.strengths import Strength, strength_values
from hra_diffusion.errors import ConfigError
from hra_diffusion.householder.recording import is_transformed
from hra_diffusion.text import nearest


class Activation:
    """The active and the merged adapters of one model. Every change is all or nothing.

    Hooks of the model factor all active chains together before each of its passes; see `passes`.

    Attributes:
        configs: the settings of each adapter.
        active: the active adapters.
        merged: the mixture in the weights; empty when none is merged.
        hooks: handles of the model's hooks.
    """

    def __init__(self, injection: Injection) -> None:
        self._injection = injection
        self.configs: dict[str, HRAConfig] = {}
        self.active = ActiveAdapters()
        self.merged: ModelMixture = ()
        self._in_pass = [False]
        self.hooks = [
            injection.model.register_forward_pre_hook(self._before_pass),
            injection.model.register_forward_hook(self._after_pass, always_call=True),
        ]

    @property
    def merged_names(self) -> list[str]:
        """Names of the merged adapters, in the order of their product."""
        return list(dict.fromkeys(name for blend in self.merged for name, _ in blend))

    @property
    def is_plain(self) -> bool:
        """Whether disabling and enabling the adapters computes nothing: no weights are merged, no blends needed."""
        blended = self.active.combine == "mean" and len(self.active.names) > 1
        return not self.merged and not blended and all(self.active.strengths[name] == 1 for name in self.active.names)

    def change(self, **changes: Any) -> None:
        """Change attributes of the active adapters.

        Raises:
            ConfigError: a blend has an adapter of odd rank, or a mixed batch is generated; nothing is changed.
        """
        self.check_changeable()
        before, active = self.active, replace(self.active, **changes)
        try:
            self._injection.activate(active)
        except BaseException:
            self._injection.activate(before)
            raise
        self.active = active
        self._activate_trained_modules()

    def check_changeable(self) -> None:
        """Raise ConfigError during a mixed batch: its rows have the adapters of its beginning."""
        if any(layer.rows is not None for layer in self._injection.layers.values()):
            raise ConfigError(
                "No adapter can be activated or changed during a mixed batch, whose prompts or adapter_names name "
                "different adapters, nor beside masks: generate such prompts one by one, and use a control without "
                "masks."
            )

    def train_active(self) -> None:
        """Make the active adapters trainable, except in inference mode, and freeze the others."""
        for name, config in self.configs.items():
            trains = name in self.active.names and not self.active.inference_mode and not config.inference_mode
            for parameter in self._injection.trained_parameters(name):
                parameter.requires_grad = trains

    @contextmanager
    def rows(self, adapter_names: Sequence[str]) -> Generator[None]:
        """Use another adapter for each example of a batch within a `with` block; "__base__" for the base model.

        Raises:
            ConfigError: an adapter is unknown, adapters are merged, or an adapter trains biases.
        """
        names = list(adapter_names)
        self.check_known(*(name for name in names if name != BASE))
        strengths = self.active.strengths
        with self.mixed([() if name == BASE else (((name, strengths[name]),),) for name in names]):
            yield

    @contextmanager
    def mixed(self, mixtures: Sequence[ModelMixture], *, repeated: bool = False) -> Generator[None]:
        """Use another mixture for each example of a batch within a `with` block; see `rows` and `Rows`."""
        if self.merged:
            raise ConfigError("adapter_names needs unmerged adapters: unmerge them first.")
        names = [name for mixture in mixtures for blend in mixture for name, _ in blend]
        if with_bias := [name for name in names if self.configs[name].bias != "none"]:
            raise ConfigError(f"The adapter {with_bias[0]!r} trains biases, which all rows of a batch share.")
        wrappers = {**self._injection.layers, **self._injection.copies}
        known: dict[tuple[Mixture, ...], Rows] = {}  # layers of equal strengths share the indices of their rows
        for name, wrapper in wrappers.items():
            layer_mixtures = tuple(mixture_in(mixture, name) for mixture in mixtures)
            wrapper.rows = known.setdefault(layer_mixtures, Rows(layer_mixtures, repeated=repeated))
        try:
            yield
        finally:
            for wrapper in wrappers.values():
                wrapper.rows = None

    @contextmanager
    def masked(self, rows: Callable[[str], MaskedRows], adapter_names: Sequence[str]) -> Generator[None]:
        """Use adapters inside of masks within a `with` block.

        Args:
            rows: the masks of a layer by its name.
            adapter_names: the adapters.

        Raises:
            ConfigError: adapters are merged, or one trains more than columns, which have rows.
        """
        if self.merged:
            raise ConfigError("Bound adapters need unmerged ones: unmerge them first.")
        for name in adapter_names:
            whole = self.configs[name].modules_to_save or self.configs[name].bias != "none"
            if whole or any(name in layer.magnitudes for layer in self._injection.layers.values()):
                raise ConfigError(
                    f"The adapter {name!r} trains biases, magnitudes or whole modules, which have no rows: bind it to "
                    "prompts (bind='prompt'), or train columns only."
                )
        try:
            for name, layer in self._injection.layers.items():
                layer.rows = rows(name)
            yield
        finally:
            for layer in self._injection.layers.values():
                layer.rows = None

    def merge(self, mixture: ModelMixture, **options: bool) -> None:
        """Merge a mixture into the original weights; see `merge_layers`."""
        merge_layers(self._injection.layers, mixture, **options)
        self.merged = mixture
        self._activate_trained_modules()

    def unmerge(self) -> None:
        """Restore the original weights."""
        for layer in self._injection.layers.values():
            layer.unmerge()
        self.merged = ()
        self._activate_trained_modules()

    def unmerge_to_change(self) -> None:
        """Restore the original weights with a warning, if adapters are merged."""
        if self.merged:
            warnings.warn("Merged adapters are unmerged, because other adapters become active.", stacklevel=3)
            self.unmerge()

    def mixture_to_merge(self, adapter_names: Sequence[str] | None) -> ModelMixture:
        """Return the merged mixture times further adapters, by default the active ones.

        Raises:
            ConfigError: the adapters are disabled, or a name is unknown or repeated.
        """
        self.check_changeable()
        if not self.active.enabled:
            raise ConfigError("Disabled adapters cannot be merged: enable them first.")
        names = tuple(adapter_names or ())
        self.check_known(*names)
        if len(set(names)) < len(names):
            raise ConfigError(f"An adapter can be merged once only; found {', '.join(map(repr, names))}.")
        in_layers = {layer.mixture for layer in self._injection.layers.values()}  # layers have set_adapter, too
        active: ModelMixture = in_layers.pop() if len(in_layers) == 1 else self.active.mixture
        wanted = active if adapter_names is None else self.active.product(names)
        already = self.merged_names
        if any(name in already for blend in wanted for name, _ in blend):
            left = any(name not in already for blend in wanted for name, _ in blend)
            rest = "the others are merged now." if left else "nothing to do."
            warnings.warn(f"{'Some of the' if left else 'All'} adapters are already merged, {rest}", stacklevel=3)
        others = (tuple(part for part in blend if part[0] not in already) for blend in wanted)
        return self.merged + tuple(blend for blend in others if blend)

    def restorer(self) -> Callable[[], None]:
        """Return a function that restores the present activation, without adapters deleted until then."""
        active, merged = self.active, self.merged
        training = [
            (parameter, parameter.requires_grad)
            for name in self.configs
            for parameter in self._injection.trained_parameters(name)
        ]

        def restore() -> None:
            self.unmerge()
            left = tuple(name for name in active.names if name in self.configs)
            names = left or (tuple(self.configs)[:1] if active.names else ())
            strengths = {name: active.strengths.get(name, now) for name, now in self.active.strengths.items()}
            self.change(**vars(active) | {"names": names, "strengths": strengths})
            if names != active.names:
                self.train_active()
            for parameter, trains in training if names == active.names else ():
                parameter.requires_grad = trains
            self.merge(tuple(blend for blend in merged if all(name in self.configs for name, _ in blend)))

        return restore

    def reset(self) -> None:
        """Forget all adapters, and remove the model's hooks."""
        for hook in self.hooks:
            hook.remove()
        self.configs, self.active, self.merged = {}, ActiveAdapters(), ()

    def check_known(self, *adapter_names: str) -> None:
        """Check that adapters exist.

        Raises:
            ConfigError: one does not; the message names the nearest.
        """
        for name in adapter_names:
            if name not in self.configs:
                raise ConfigError(f"The model has no adapter named {name!r}{nearest(name, self.configs)}")

    def _activate_trained_modules(self) -> None:
        """Activate trained biases and copies of the merged adapters, or else of the active ones."""
        active = self.active.names if self.active.enabled else ()
        self._injection.activate_trained_modules(self.merged_names or active)

    def _before_pass(self, model: Any, *_: Any) -> None:
        layers = self._injection.layers.values()
        if is_transformed():
            return
        if torch.compiler.is_compiling():
            factor_in_graph(layers)
            return
        if not hasattr(model, "_diffusers_hook"):  # Group offloading may load the columns only later in the pass.
            factor_together(layers, self._in_pass)
            self._in_pass[0] = True
        weak = [name for name in self.active.names if self.active.strengths[name] != 1]
        if weak and model.training and torch.is_grad_enabled() and not self.active.inference_mode:
            warnings.warn(f"Adapters at a strength other than 1 are not trained: {', '.join(weak)}.", stacklevel=2)

    def _after_pass(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            leave_graph(self._injection.layers.values())
        else:
            self._in_pass[0] = False


def check_strength(adapter_name: str, strength: Strength, config: HRAConfig) -> None:
    """Check that an adapter of these settings can have a strength.

    Raises:
        ConfigError: the strength is not finite, or the rank is odd and the strength is neither 0 nor 1.
    """
    for number in strength_values(strength):
        if not math.isfinite(number):
            raise ConfigError(f"The strength of {adapter_name!r} must be a finite number; found {number}.")
        if config.odd_rank and not config.apply_GS and number not in (0, 1):
            raise ConfigError(
                f"The adapter {adapter_name!r} has the odd rank {config.odd_rank}: its determinant is −1, its strength "
                f"can be 0 or 1 only; found {number}. Train with an even rank."
            )
