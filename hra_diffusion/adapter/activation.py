"""Which adapters of a model act, how strongly, and whether through the weights."""

import math
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.injection import Injection
from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.adapter.merging import merge_layers
from hra_diffusion.adapter.mixture import Acting, Mixture, factor_together
from hra_diffusion.adapter.proxy import ModelProxy
from hra_diffusion.errors import ConfigError


class AdaptedModel(ModelProxy):
    """A model with adapters in it, of which some act: one, the product of several, or their mean."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._configs: dict[str, HRAConfig] = {}
        self._injection = Injection(model)
        self._acting = Acting()
        self._merged: Mixture = ()
        self._hooks = [
            model.register_forward_pre_hook(self._before_pass),
            model.register_forward_hook(self._after_pass, always_call=True),
        ]

    @property
    def peft_config(self) -> dict[str, HRAConfig]:
        """The settings of each adapter."""
        return self._configs

    @peft_config.deleter
    def peft_config(self) -> None:
        """Delete PEFT's of the model itself: that is what libraries mean which take their LoRAs out of it."""
        vars(self.model).pop("peft_config", None)

    def layers(self) -> dict[str, HRALayer]:
        """Return the adapted layers by their names in the model."""
        return dict(self._injection.layers)

    def set_adapter(self, adapter_name: str | Sequence[str], inference_mode: bool = False) -> None:
        """Let one adapter act, or the ordered product of several, H = H_first ⋯ H_last; the others rest, frozen.

        Args:
            adapter_name: one or several names.
            inference_mode: freeze the acting ones, too.

        Raises:
            ConfigError: there is no such adapter.
        """
        names = _one_or_several(adapter_name)
        self._check_known(*names)
        self._unmerge_to_change()
        self._act(names=names, as_mean=False, inference_mode=inference_mode)
        self._train_acting()

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
        adapter_names = _one_or_several(adapter_names)
        if combine not in ("product", "lie"):
            raise ConfigError(f"combine must be 'product' or 'lie'; found {combine!r}.")
        if strengths is not None and len(strengths) != len(adapter_names):
            raise ConfigError(f"{len(adapter_names)} adapters need as many strengths; found {len(strengths)}.")
        if len(set(adapter_names)) < len(adapter_names):
            raise ConfigError(f"An adapter can act once only; found {', '.join(map(repr, adapter_names))}.")
        self._check_known(*adapter_names)
        chosen = dict(zip(adapter_names, strengths or (), strict=strengths is not None))
        for name, strength in chosen.items():
            self._check_strength(name, strength, self.peft_config[name])
        self._unmerge_to_change()
        self._act(
            names=tuple(adapter_names),
            strengths={**self.strengths, **chosen},
            as_mean=combine == "lie",
            inference_mode=False,
        )
        self._train_acting()

    def set_strength(self, strength: float, adapter_name: str = "default") -> None:
        """Move an adapter along its geodesic: 0 is the base model, 1 the adapter, and any real number is orthogonal.

        Biases and modules that it trains whole act at any strength. At strengths other than 1, gradients pass through
        the adapter but do not reach it.

        Raises:
            ConfigError: there is no such adapter, the strength is not finite, or the rank is odd and the strength is
                neither 0 nor 1; nothing is changed.
        """
        self._check_known(adapter_name)
        self._check_strength(adapter_name, strength, self.peft_config[adapter_name])
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
        restore = self.restorer()
        self.disable_adapter_layers()
        try:
            yield
        finally:
            restore()

    def restorer(self) -> Callable[[], None]:
        """Return what puts back, once called, what acts and what is merged now, but for adapters that are gone then."""
        acting, merged = self._acting, self._merged
        training = [
            (each, each.requires_grad) for name in self.peft_config for each in self._injection.trained_parameters(name)
        ]

        def restore() -> None:
            self.unmerge_adapter()
            there = self.peft_config.keys()
            left = tuple(name for name in acting.names if name in there)
            names = left or (tuple(there)[:1] if acting.names else ())
            strengths = {name: acting.strengths.get(name, now) for name, now in self.strengths.items()}
            self._act(**vars(acting) | {"names": names, "strengths": strengths})
            if names != acting.names:  # another took over
                self._train_acting()
            for parameter, trains in training if names == acting.names else ():
                parameter.requires_grad = trains
            self._merge(tuple(blend for blend in merged if all(name in there for name, _ in blend)))

        return restore

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
            MergeError: a weight is quantized, or (safe_merge) would not be finite; nothing is changed.
        """
        self._merge(self._to_merge(adapter_names), safe_merge=safe_merge)

    def unmerge_adapter(self) -> None:
        """Put the original weights back."""
        for layer in self.layers().values():
            layer.unmerge()
        self._merged = ()
        self._injection.answer(self._answering)

    def fuse_qkv_projections(self) -> None:
        """Join the projections of attention as diffusers does, which joins their weights.

        Raises:
            ConfigError: adapters act beside the weights.
        """
        if self.peft_config and not self._merged:
            raise ConfigError(
                "Projections cannot be joined while adapters lie beside their weights: merge them first (fuse_hra)."
            )
        model: Any = self.model
        model.fuse_qkv_projections()

    @contextmanager
    def ejected(self) -> Generator[nn.Module]:
        """Give the model without its adapters within a `with` block, for whatever must see the base model alone."""
        with self._injection.ejected() as base:
            yield base

    def _act(self, **changes: Any) -> None:
        """Change which adapters act and how, all or nothing."""
        before, acting = self._acting, replace(self._acting, **changes)
        try:
            self._injection.act(acting)
        except BaseException:
            self._injection.act(before)
            raise
        self._acting = acting
        self._injection.answer(self._answering)

    def _train_acting(self) -> None:
        """Let the adapters that act train, unless they are for inference, and freeze the others."""
        for name, config in self.peft_config.items():
            trains = name in self._acting.names and not self._acting.inference_mode and not config.inference_mode
            for parameter in self._injection.trained_parameters(name):
                parameter.requires_grad = trains

    def _to_merge(self, adapter_names: Sequence[str] | None) -> Mixture:
        if not self._acting.enabled:
            raise ConfigError("The adapters are disabled, and the model is to act without them: enable them to merge.")
        names = _one_or_several(adapter_names or ())
        self._check_known(*names)
        if len(set(names)) < len(names):
            raise ConfigError(f"An adapter can be merged once only; found {', '.join(map(repr, names))}.")
        wanted = self._acting.mixture if adapter_names is None else self._acting.product(names)
        already = self.merged_adapters
        if any(name in already for blend in wanted for name, _ in blend):
            warnings.warn("Some of the adapters are merged already; the others are merged now.", stacklevel=3)
        others = (tuple(part for part in blend if part[0] not in already) for blend in wanted)
        return self._merged + tuple(blend for blend in others if blend)

    def _merge(self, mixture: Mixture, **options: bool) -> None:
        merge_layers(self._injection.layers, mixture, **options)
        self._merged = mixture
        self._injection.answer(self._answering)

    @property
    def is_plain(self) -> bool:
        """Whether what acts does so beside the weights and without blends, so that switching it computes nothing."""
        acting = self._acting
        blended = acting.as_mean and len(acting.names) > 1
        return not self._merged and not blended and all(acting.strengths[name] == 1 for name in acting.names)

    @property
    def _answering(self) -> Sequence[str]:
        """The adapters whose biases and modules trained whole act: those that are merged, or else those that act."""
        return self.merged_adapters or (self._acting.names if self._acting.enabled else ())

    def _before_pass(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        if hasattr(self.model, "_diffusers_hook"):  # offloading groups of layers: the columns may not be there yet
            self._after_pass()
        else:
            factor_together(self._injection.layers.values())
        weak = [name for name in self._acting.names if self._acting.strengths[name] != 1]
        if weak and self.model.training and torch.is_grad_enabled() and not self._acting.inference_mode:
            warnings.warn(f"Adapters at a strength other than 1 are not trained: {', '.join(weak)}.", stacklevel=2)

    def _after_pass(self, *_: Any) -> None:
        for layer in self._injection.layers.values():
            layer.ready = None

    def _unmerge_to_change(self) -> None:
        if self._merged:
            warnings.warn("Adapters are merged into the model: they are unmerged, to let others act.", stacklevel=3)
            self.unmerge_adapter()

    def _check_known(self, *adapter_names: str) -> None:
        for name in adapter_names:
            if name not in self.peft_config:
                known = ", ".join(map(repr, self.peft_config)) or "none"
                raise ConfigError(f"There is no adapter named {name!r} here; known are: {known}.")

    def _check_strength(self, adapter_name: str, strength: float, config: HRAConfig) -> None:
        """Check that an adapter of these settings can have a strength."""
        if not math.isfinite(strength):
            raise ConfigError(f"The strength of {adapter_name!r} must be a finite number; found {strength}.")
        if config.r % 2 and not config.apply_GS and strength not in (0, 1):
            raise ConfigError(
                f"The adapter {adapter_name!r} has the odd rank {config.r}: its determinant is −1, its strength can "
                f"be 0 or 1 only; found {strength}. Train with an even rank."
            )


def _one_or_several(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)
