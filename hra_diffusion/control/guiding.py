"""Guidance of a pipeline by a condition, within a ``with`` block: any pipeline whose denoiser has a `ConditionInput`.

In a range of the denoising process the encoded condition is added after the denoiser's first layer, and the control's
adapter is active beside the other active adapters. Outside this range the pipeline is unchanged. The range is measured
in the model's own time,

    progress = 1 − t / T ∈ [0, 1]

so it means the same for every scheduler, number of steps and (image to image) first step.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hra_diffusion.adapter.mixture import Combine
from hra_diffusion.control.annotators import Annotator, Given
from hra_diffusion.control.condition_inputs import ConditionInput, DenoiserCall, condition_input, recorded_contexts
from hra_diffusion.control.conditions import fit
from hra_diffusion.control.encoder import ConditionEncoder, to_conditions
from hra_diffusion.errors import ConfigError
from hra_diffusion.model import HRAModel
from hra_diffusion.pipelines.components import (
    adapted_components,
    bare_model,
    denoiser_name,
    lock_of,
    offloading_suspended,
)
from hra_diffusion.pipelines.protocol import Pipeline

Images = Image.Image | Sequence[Image.Image]

_not_compiled: Any = torch.compiler.disable  # untyped in torch


@dataclass(frozen=True, kw_only=True)
class Control:
    """A trained control: an encoder of conditions, and an adapter that is inactive without a condition.

    Attributes:
        encoder: the encoder of conditions.
        adapter_name: the adapter's name in the denoiser.
    """

    encoder: ConditionEncoder
    adapter_name: str

    @property
    def annotator(self) -> Annotator:
        """The annotator of the conditions."""
        return self.encoder.annotator

    @contextmanager
    def guiding(
        self,
        pipe: Pipeline,
        image: Images,
        *,
        strength: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        unconditional: bool = False,
        annotated: bool = False,
        combine: Combine = "mean",
    ) -> Iterator[None]:
        """Let a condition guide a pipeline within a ``with`` block.

        Args:
            pipe: a pipeline with the adapter in its denoiser: that with the loaded control, or one of its components.
            image: one image, or an image for each prompt; the annotator makes the conditions. Images are scaled to
                cover the generated size and cropped to the center.
            strength: of the condition, and of the adapter along its geodesic; 0 is the pipeline without control.
            start: start of the control in the denoising process: 0 is noise, 1 the finished image.
            end: end of the control, likewise.
            unconditional: whether the condition guides the unconditional prediction of classifier-free guidance, too,
                as with ControlNets. Otherwise guidance strengthens the condition like the prompt.
            annotated: whether the images are conditions already.
            combine: combination of the adapter with other active ones, see `set_hra_adapters`.

        Raises:
            ConfigError: a number is out of its range, or the pipeline does not have the adapter.
            ModelError: the pipeline's denoiser takes no control.
        """
        if not math.isfinite(strength):
            raise ConfigError(f"control_strength is {strength}: give a finite number.")
        if not 0 <= start < end <= 1:
            raise ConfigError(f"control_start is {start} and control_end {end}: give 0 ≤ start < end ≤ 1.")
        name = denoiser_name(pipe)
        target = condition_input(getattr(pipe, name))
        denoiser = adapted_components(pipe).get(name)
        if denoiser is None or self.adapter_name not in denoiser.peft_config:
            raise ConfigError(
                f"The {name} of this {type(pipe).__name__} has no adapter {self.adapter_name!r}: load the control into "
                "it with load_hra_control, or make it of the components of a pipeline that has the adapter."
            )
        images = [image] if isinstance(image, Image.Image) else list(image)
        features = _Features(self.encoder, Given() if annotated else self.annotator, images, strength)
        with lock_of(pipe), ExitStack() as undo:
            undo.callback(_with_tensors(pipe, denoiser._restorer()))
            switch = _Switch(denoiser, self.adapter_name, strength, combine)
            contexts = undo.enter_context(recorded_contexts(bare_model(denoiser)))
            hooks = _Hooks(pipe, target, contexts, features, switch, (start, end), unconditional)
            undo.callback(denoiser.register_forward_pre_hook(hooks.before_denoiser, with_kwargs=True).remove)
            undo.callback(target.layer(denoiser).register_forward_hook(hooks.after_first_layer).remove)
            with offloading_suspended(pipe):
                denoiser.unmerge_adapter()
                switch(False)
            yield


@contextmanager
def adding(denoiser: nn.Module, features: Tensor) -> Iterator[None]:
    """Add features (B, C, h, w) after a denoiser's first layer within a ``with`` block."""
    target = condition_input(denoiser)

    def after_first_layer(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return target.add_features(output, features.to(output.dtype))

    handle = target.layer(denoiser).register_forward_hook(after_first_layer)
    try:
        yield
    finally:
        handle.remove()


class _Switch:
    """The activation of a control's adapter beside the other active adapters."""

    def __init__(self, denoiser: HRAModel, name: str, strength: float, combine: Combine) -> None:
        self._denoiser, self._name, self._strength = denoiser, name, strength
        self._combine: Combine = combine
        self._strengths = denoiser.strengths
        self.on: bool | None = None

    def __call__(self, on: bool) -> None:
        others = [other for other in self._denoiser.active_adapters if other != self._name]  # bound ones may change
        names = [*others, self._name] if on and self._strength else others
        if on == self.on and names == self._denoiser.active_adapters:
            return
        self.on = on
        strengths = [self._strength if name == self._name else self._strengths[name] for name in names]
        combine: Combine = self._combine if len(names) > 1 else "product"
        self._denoiser.set_adapters(names, strengths, combine)


class _Features:
    """The encoded conditions, computed once for each size of the latent."""

    def __init__(
        self, encoder: ConditionEncoder, annotator: Annotator, images: list[Image.Image], strength: float
    ) -> None:
        self._encoder, self._annotator, self._images, self._strength = encoder, annotator, images, strength
        self._encoded: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def __call__(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return features (images, C, height, width), times the strength."""
        if (height, width) not in self._encoded:
            scale = self._encoder.config["scale_factor"]
            size = (width * scale, height * scale)
            labels = self._encoder.annotator.labels and isinstance(self._annotator, Given)
            conditions = [self._annotator(fit(image, size, labels)) for image in self._images]
            self._encoder.to(device)  # pyright: ignore (diffusers' decorator hides the types)
            encoded = self._encoder(to_conditions(conditions).to(device, self._encoder.dtype))
            self._encoded[height, width] = encoded * self._strength
        return self._encoded[height, width]


class _Hooks:
    """The hooks of a denoiser under control."""

    def __init__(
        self,
        pipe: Pipeline,
        target: ConditionInput,
        contexts: list[str],
        features: _Features,
        switch: _Switch,
        span: tuple[float, float],
        unconditional: bool,
    ) -> None:
        self._pipe, self._target, self._contexts = pipe, target, contexts
        self._features, self._switch = features, switch
        self._span, self._unconditional = span, unconditional
        self._call = DenoiserCall(args=(), kwargs={})

    @_not_compiled
    def before_denoiser(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Switch the adapter by the progress of the denoising."""
        context = self._contexts[-1] if self._contexts else None
        self._call = DenoiserCall(args=args, kwargs=kwargs, context=context)
        start, end = self._span
        self._switch(start <= self._target.progress(self._pipe, self._call) <= end)

    @_not_compiled
    def after_first_layer(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """Add the features."""
        if not self._switch.on:
            return output
        height, width = self._target.grid(output, self._call)
        features = self._features(height, width, output.device).to(output.dtype)
        parts = self._target.guided_parts(self._pipe, self._call)
        count = output.shape[0] // len(parts)
        if count % len(features):
            raise ConfigError(f"{len(features)} conditions cannot be divided among {count} images: give as many.")
        features = features.repeat_interleave(count // len(features), dim=0)
        nothing = torch.zeros_like(features)
        added = torch.cat([features if guided or self._unconditional else nothing for guided in parts])
        return self._target.add_features(output, added, self._call)


def _with_tensors(pipe: Pipeline, action: Callable[[], None]) -> Callable[[], None]:
    """Return the action with the pipeline's offloading suspended."""

    def run() -> None:
        with offloading_suspended(pipe):
            action()

    return run
