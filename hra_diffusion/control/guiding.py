"""A condition acts on a pipeline within a ``with`` block: any diffusers pipeline whose denoiser is a UNet.

In the part of the denoising range that was asked for, the encoded condition is added after the UNet's first convolution
and the adapter acts beside those that act anyway; in the rest of it the pipeline is as it was. Time is the model's own,

    done = 1 − t / T ∈ (0, 1]

so that the range means the same whatever the scheduler, the number of steps and (image to image) the first of them.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from hra_diffusion.adapter import HRAModel
from hra_diffusion.control.annotators import Annotator, Given
from hra_diffusion.control.encoder import ConditionEncoder, to_conditions
from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines.components import adapted_components, lock_of, offloading_suspended

Images = Image.Image | Sequence[Image.Image]


@dataclass(frozen=True, kw_only=True)
class Control:
    """What was learned of a kind of condition; its adapter rests in a pipeline's UNet until a condition is there.

    Attributes:
        encoder: what reads the condition.
        adapter_name: the adapter's name in the UNet.
    """

    encoder: ConditionEncoder
    adapter_name: str

    @property
    def annotator(self) -> Annotator:
        """What conditions are made with."""
        return self.encoder.annotator

    @contextmanager
    def guiding(
        self,
        pipe: Any,
        image: Images,
        *,
        strength: float = 1.0,
        start: float = 0.0,
        end: float = 1.0,
        unconditional: bool = False,
        annotated: bool = False,
        combine: Literal["lie", "product"] = "lie",
    ) -> Iterator[None]:
        """Let a condition guide whatever a pipeline draws within a ``with`` block.

        Args:
            pipe: a pipeline with the adapter in its UNet: the one it was loaded into, or one of the same components.
            image: an image, whose annotation is the condition, or one for each prompt; they are made to cover the
                size that is drawn, and their middle is taken.
            strength: of the condition, and the adapter's place on its geodesic: 0 is the pipeline without control.
            start: where in the denoising range it begins to act, from 0, noise, …
            end: … to 1, the finished image.
            unconditional: whether the condition guides the unconditional prediction of classifier-free guidance, too,
                as ControlNets' does. Where it does not, guidance strengthens the condition as it does the prompt.
            annotated: whether the images are annotations already.
            combine: how the adapter goes together with others that act, see `set_hra_adapters`.

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
                "it with load_hra_control, or make it of the components of a pipeline that has it."
            )
        images = [image] if isinstance(image, Image.Image) else list(image)
        features = _Features(self.encoder, Given() if annotated else self.annotator, images, strength)
        with lock_of(pipe), ExitStack() as undo:
            undo.callback(_within(pipe, unet.restorer()))
            switch = _Switch(unet, self.adapter_name, strength, combine)
            passing = _Passing(pipe, features, switch, (start, end), unconditional)
            undo.callback(unet.register_forward_pre_hook(passing.before, with_kwargs=True).remove)
            undo.callback(unet.conv_in.register_forward_hook(passing.after_first_convolution).remove)
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
    """Lets the control's adapter act beside the others, or leaves these alone."""

    def __init__(self, unet: HRAModel, name: str, strength: float, combine: Literal["lie", "product"]) -> None:
        self._unet, self._name, self._strength, self._combine = unet, name, strength, combine
        self._others = [other for other in unet.active_adapters if other != name]
        self._strengths = unet.strengths
        self.on: bool | None = None

    def __call__(self, on: bool) -> None:
        if on == self.on:
            return
        self.on = on
        names = [*self._others, self._name] if on and self._strength else self._others
        strengths = [self._strength if name == self._name else self._strengths[name] for name in names]
        combine = self._combine if len(names) > 1 else "product"
        self._unet.set_adapters(names, strengths, combine)


class _Features:
    """The encoded condition, made when the size that is drawn is known."""

    def __init__(
        self, encoder: ConditionEncoder, annotator: Annotator, images: list[Image.Image], strength: float
    ) -> None:
        self._encoder, self._annotator, self._images, self._strength = encoder, annotator, images, strength
        self._made: dict[tuple[int, int], Tensor] = {}

    @torch.no_grad()
    def of_size(self, height: int, width: int, device: torch.device) -> Tensor:
        """Return features (images, C, height, width), times the strength."""
        if (height, width) not in self._made:
            scale = self._encoder.config["scale_factor"]
            size = (width * scale, height * scale)
            labels = self._encoder.annotator.labels and isinstance(self._annotator, Given)
            conditions = [self._annotator(fit(image, size, labels)) for image in self._images]
            self._encoder.to(device)
            encoded = self._encoder(to_conditions(conditions).to(device, self._encoder.dtype))
            self._made[height, width] = encoded * self._strength
        return self._made[height, width]


class _Passing:
    """What happens in each pass of the UNet."""

    def __init__(
        self, pipe: Any, features: _Features, switch: _Switch, span: tuple[float, float], unconditional: bool
    ) -> None:
        self._pipe, self._features, self._switch = pipe, features, switch
        self._span, self._unconditional = span, unconditional

    @torch.compiler.disable
    def before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See how far the denoising is, and let the adapter act or rest."""
        timestep = torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).flatten()[0].item()
        done = 1 - timestep / self._pipe.scheduler.config.num_train_timesteps
        start, end = self._span
        self._switch(start <= done <= end)

    @torch.compiler.disable
    def after_first_convolution(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """Add the features."""
        if not self._switch.on:
            return output
        features = self._features.of_size(*output.shape[2:], output.device).to(output.dtype)
        halves = 2 if self._pipe.do_classifier_free_guidance else 1  # the unconditional one comes first
        count = output.shape[0] // halves
        if count % len(features):
            raise ConfigError(f"{len(features)} conditions cannot be shared out among {count} images: give as many.")
        features = features.repeat_interleave(count // len(features), dim=0)
        if halves == 1:
            return output + features
        first = features if self._unconditional else torch.zeros_like(features)
        return output + torch.cat([first, features])


def fit(image: Image.Image, size: tuple[int, int], labels: bool = False) -> Image.Image:
    """Scale an image to cover a size, and take its middle; colors that are labels are not mixed."""
    if image.size == size:
        return image
    image = image if image.mode in ("RGB", "RGBA", "L", "F", "I;16", "I") else image.convert("RGB")
    return ImageOps.fit(image, size, Image.Resampling.NEAREST if labels else Image.Resampling.LANCZOS)


def _within(pipe: Any, action: Callable[[], None]) -> Callable[[], None]:
    def act() -> None:
        with offloading_suspended(pipe):
            action()

    return act
