"""What a pipeline's files and its call leave open, by the class of the pipeline: guidance, sizes, channels.

A row of ``KINDS`` is all that a new kind of text-to-image pipeline needs below training.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines.components import denoiser_name
from hra_diffusion.pipelines.protocol import Pipeline


@dataclass(frozen=True, kw_only=True)
class PipelineKind:
    """A kind of text-to-image pipeline."""

    guidance_scale: float = 7.5
    """Default guidance scale of generated images."""
    size: int | None = None
    """Default side of square images in pixels, where neither the denoiser nor the pipeline names one."""
    packing: int = 1
    """Channels of the denoiser's input for each channel of the autoencoder's latents: 4 for patches of 2 × 2."""
    true_cfg: bool = False
    """Whether the guidance scale is the argument ``true_cfg_scale``, which needs a negative prompt."""
    distilled_guidance: bool = False
    """Whether the guidance scale is an input of the denoiser, and a negative prompt has no effect."""
    text_encoders_train: bool = False
    """Whether its text encoders can be trained."""


KINDS: Mapping[str, PipelineKind] = {
    "StableDiffusionPipeline": PipelineKind(text_encoders_train=True),
    "StableDiffusionXLPipeline": PipelineKind(text_encoders_train=True),
    "StableDiffusion3Pipeline": PipelineKind(text_encoders_train=True),
    "ZImagePipeline": PipelineKind(guidance_scale=4.0, size=1024),
    "FluxPipeline": PipelineKind(guidance_scale=3.5, packing=4, distilled_guidance=True),
    "FluxKontextPipeline": PipelineKind(guidance_scale=3.5, packing=4, distilled_guidance=True),
    "ChromaPipeline": PipelineKind(guidance_scale=5.0, packing=4),
    "Flux2KleinPipeline": PipelineKind(guidance_scale=4.0, packing=4),
    "Flux2Pipeline": PipelineKind(guidance_scale=4.0, packing=4, distilled_guidance=True),
    "QwenImagePipeline": PipelineKind(guidance_scale=4.0, packing=4, true_cfg=True),
}


def kind_of(pipe: Pipeline) -> PipelineKind:
    """Return a pipeline's kind, by default Stable Diffusion's; image to image has that of text to image."""
    return KINDS.get(_text_to_image(pipe), PipelineKind())


def size_multiple(pipe: Pipeline) -> int:
    """Return the size multiple of a pipeline's images, in pixels: its own image processor counts packed patches."""
    patches = pipe.vae_scale_factor * (getattr(pipe, denoiser_name(pipe)).config.get("patch_size") or 1)
    return max(pipe.image_processor.config.vae_scale_factor, patches)


def default_size(pipe: Pipeline) -> int | None:
    """Return the default side length of a pipeline's square images, in pixels, if its model names one.

    A model may name a height and a width: two different ones are no side length.
    """
    size = getattr(pipe, denoiser_name(pipe)).config.get("sample_size")
    if isinstance(size, list | tuple):
        size = size[0] if len(set(size)) == 1 else None
    size = size or getattr(pipe, "default_sample_size", None)
    return size * pipe.vae_scale_factor if size else kind_of(pipe).size


def call_options(pipe: Pipeline, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a pipeline's call for options that have the names of Stable Diffusion's.

    A guidance scale that is None becomes the kind's default.

    Raises:
        ConfigError: there is a negative prompt, which the pipeline does not take, or one step of a schedule that is
            stretched between its first and its last step.
    """
    kind, arguments = kind_of(pipe), dict(options)
    if arguments.get("guidance_scale", 0) is None:
        arguments["guidance_scale"] = kind.guidance_scale
    accepted = inspect.signature(type(pipe).__call__).parameters
    is_known = _text_to_image(pipe) in KINDS
    takes_negative = not is_known or ("negative_prompt" in accepted and not kind.distilled_guidance)
    if arguments.get("negative_prompt", "") is None or not (takes_negative or arguments.get("negative_prompt")):
        arguments.pop("negative_prompt", None)
    if "max_area" in accepted and arguments.get("height") and arguments.get("width"):
        arguments["max_area"] = arguments["height"] * arguments["width"]  # or else the image has 1024² pixels
    if kind.true_cfg and "guidance_scale" in arguments:
        arguments["true_cfg_scale"] = arguments.pop("guidance_scale")
        if arguments["true_cfg_scale"] > 1:  # without a negative prompt it would have no effect
            arguments = {"negative_prompt": " "} | arguments
    if "negative_prompt" in arguments and not takes_negative:
        raise ConfigError(f"--negative_prompt is given, and a {type(pipe).__name__} takes none: leave it out.")
    if arguments.get("num_inference_steps") == 1 and pipe.scheduler.config.get("shift_terminal"):
        raise ConfigError(
            f"--num_inference_steps is 1, and the schedule of a {type(pipe).__name__} has a first and a last step: "
            "give 2 or more."
        )
    return arguments


def _text_to_image(pipe: Pipeline) -> str:
    """Return a pipeline's class; for image to image and inpainting, that of text to image."""
    return type(pipe).__name__.replace("Img2Img", "").replace("Inpaint", "")
