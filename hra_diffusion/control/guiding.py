"""Guidance of a pipeline by a condition, within a ``with`` block: any diffusers pipeline with a UNet.

In a range of the denoising process the encoded condition is added after the UNet's first convolution, and the control's
adapter is active beside the other active adapters. Outside this range the pipeline is unchanged. The range is measured
in the model's own time,

    progress = 1 − t / T ∈ (0, 1]

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
from hra_diffusion.control.conditions import fit
from hra_diffusion.control.encoder import ConditionEncoder, to_conditions
from hra_diffusion.errors import ConfigError
from hra_diffusion.model import HRAModel
from hra_diffusion.pipelines.components import adapted_components, lock_of, offloading_suspended
from hra_diffusion.pipelines.protocol import Pipeline

Images = Image.Image | Sequence[Image.Image]

_not_compiled: Any = torch.compiler.disable  # untyped in torch


@dataclass(frozen=True, kw_only=True)
class Control:
    """A trained control: an encoder of conditions, and an adapter that is inactive without a condition.

    Attributes:
        encoder: the encoder of conditions.
        adapter_name: the adapter's name in the UNet.
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
            pipe: a pipeline with the adapter in its UNet: the one with the loaded control, or one of its components.
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
        """
        if not math.isfinite(strength):
            raise ConfigError(f"control_strength is {strength}: give a finite number.")
        if not 0 <= start < end <= 1:
            raise ConfigError(f"control_start is {start} and control_end {end}: give 0 ≤ start < end ≤ 1.")
        unet = adapted_components(pipe).get("unet")
        if unet is None or self.adapter_name not in unet.peft_config:
            raise ConfigError(
                f"The UNet of this {type(pipe).__name__} has no adapter {self.adapter_name!r}: load the control into "
                "it with load_hra_control, or make it of the components of a pipeline that has the adapter."
            )
        images = [image] if isinstance(image, Image.Image) else list(image)
        features = _Features(self.encoder, Given() if annotated else self.annotator, images, strength)
        with lock_of(pipe), ExitStack() as undo:
            undo.callback(_with_tensors(pipe, unet._restorer()))
            switch = _Switch(unet, self.adapter_name, strength, combine)
            hooks = _Hooks(pipe, features, switch, (start, end), unconditional)
            undo.callback(unet.register_forward_pre_hook(hooks.before_unet, with_kwargs=True).remove)
            undo.callback(unet.conv_in.register_forward_hook(hooks.after_first_convolution).remove)
            with offloading_suspended(pipe):
                unet.unmerge_adapter()
                switch(False)
            yield


@contextmanager
def adding(unet: Any, features: Tensor) -> Iterator[None]:
    """Add features (B, C, h, w) after a UNet's first convolution within a ``with`` block."""
    handle = unet.conv_in.register_forward_hook(lambda _, __, output: output + features.to(output.dtype))
    try:
        yield
    finally:
        handle.remove()


class _Switch:
    """The activation of a control's adapter beside the other active adapters."""

    def __init__(self, unet: HRAModel, name: str, strength: float, combine: Combine) -> None:
        self._unet, self._name, self._strength = unet, name, strength
        self._combine: Combine = combine
        self._others = [other for other in unet.active_adapters if other != name]
        self._strengths = unet.strengths
        self.on: bool | None = None

    def __call__(self, on: bool) -> None:
        if on == self.on:
            return
        self.on = on
        names = [*self._others, self._name] if on and self._strength else self._others
        strengths = [self._strength if name == self._name else self._strengths[name] for name in names]
        combine: Combine = self._combine if len(names) > 1 else "product"
        self._unet.set_adapters(names, strengths, combine)


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
    """The hooks of a UNet under control."""

    def __init__(
        self, pipe: Pipeline, features: _Features, switch: _Switch, span: tuple[float, float], unconditional: bool
    ) -> None:
        self._pipe, self._features, self._switch = pipe, features, switch
        self._span, self._unconditional = span, unconditional

    @_not_compiled
    def before_unet(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Switch the adapter by the progress of the denoising."""
        timestep = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).flatten()[0].item()
        progress = 1 - timestep / self._pipe.scheduler.config.num_train_timesteps
        start, end = self._span
        self._switch(start <= progress <= end)

    @_not_compiled
    def after_first_convolution(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """Add the features."""
        if not self._switch.on:
            return output
        height, width = output.shape[2:]
        features = self._features(height, width, output.device).to(output.dtype)
        halves = 2 if self._pipe.do_classifier_free_guidance else 1  # the unconditional half is the first
        count = output.shape[0] // halves
        if count % len(features):
            raise ConfigError(f"{len(features)} conditions cannot be divided among {count} images: give as many.")
        features = features.repeat_interleave(count // len(features), dim=0)
        if halves == 1:
            return output + features
        first = features if self._unconditional else torch.zeros_like(features)
        return output + torch.cat([first, features])


def _with_tensors(pipe: Pipeline, action: Callable[[], None]) -> Callable[[], None]:
    """Return the action with the pipeline's offloading suspended."""

    def run() -> None:
        with offloading_suspended(pipe):
            action()

    return run
