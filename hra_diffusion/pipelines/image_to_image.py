"""Image to image and inpainting with the components of a text-to-image pipeline.

Inpainting uses diffusers' pipeline of the family. Those of Stable Diffusion take latents of 4 channels only, and
Chroma's reads a setting of FLUX.1 (diffusers 0.42). Image to image stands in for them: after each step, the latents
outside the mask become those of the start image at the next noise level (https://arxiv.org/abs/2201.09865, without
resampling). At the end, pixels outside the mask are the start image's.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines.clip_skip import default_clip_skip, set_clip_skip
from hra_diffusion.pipelines.components import denoiser_name
from hra_diffusion.pipelines.models import generate_image
from hra_diffusion.pipelines.protocol import Pipeline

AfterStep = Callable[[Pipeline, int, Any, dict[str, Any]], dict[str, Any]]
"""A callback of diffusers' pipelines: ``callback_on_step_end``."""
_UNET_CHANNELS = 4
"""Channels of the latents that diffusers' inpainting pipelines with a UNet take."""


class ImageToImage:
    """A pipeline that starts from an image, and with a mask repaints a part of it.

    Args:
        pipe: a text-to-image pipeline; its components are shared.
        image: the start image, in the size of the result.
        strength: denoising strength: more than 0, and 1 for pure noise.
        mask: of the image's size: white is repainted, black kept. None repaints all.
        mask_blur: radius of the transition at the mask's edge, in pixels.

    Raises:
        ConfigError: diffusers has no such pipeline for this kind of model, or the mask is black.
    """

    def __init__(
        self, pipe: Pipeline, image: Image.Image, strength: float, mask: Image.Image | None = None, mask_blur: int = 4
    ) -> None:
        self.image = image.convert("RGB")
        self.mask = mask and _to_mask(mask, image.size, mask_blur)
        self._options: dict[str, Any] = {"image": self.image, "strength": strength}
        self._keeps_latents = self.mask is not None and _lacks_inpainting(pipe)
        inpaints = self.mask is not None and not self._keeps_latents
        self.pipe = _sharing_components(pipe, inpaints=inpaints)
        accepted = inspect.signature(type(self.pipe).__call__).parameters
        sizes = {"height": image.height, "width": image.width}
        self._options |= {name: value for name, value in sizes.items() if name in accepted}
        if inpaints:
            self._options["mask_image"] = self.mask
            if "_auto_resize" in accepted:  # FLUX.1 Kontext: to one of its sizes
                self._options["_auto_resize"] = False

    def generate(
        self, prompt: str | None, seed: int, callback_on_step_end: AfterStep | None = None, **options: Any
    ) -> Image.Image:
        """Generate one image; arguments as in `generate_image`."""
        after_step = callback_on_step_end
        if self._keeps_latents and self.mask:
            after_step = _KeptLatents(self.pipe, self.image, self.mask, seed, after_step)
        if after_step:
            options["callback_on_step_end"] = after_step
        image = generate_image(self.pipe, prompt, seed, **(options | self._options))
        return Image.composite(image, self.image, self.mask) if self.mask else image


def has_image_to_image(pipe: Pipeline) -> bool:
    """Whether diffusers has image to image for a kind of pipeline."""
    return _sharing_class(pipe, inpaints=False) is not None


def _to_mask(mask: Image.Image, size: tuple[int, int], blur: int) -> Image.Image:
    """Return a mask in gray and with soft edges."""
    gray = mask.convert("L").resize(size, Image.Resampling.BILINEAR)
    if not gray.getbbox():
        raise ConfigError("The mask is black, so that nothing is repainted: paint the part to repaint in white.")
    return gray.filter(ImageFilter.GaussianBlur(blur)) if blur else gray


def _lacks_inpainting(pipe: Pipeline) -> bool:
    """Whether diffusers' inpainting does not take this pipeline's model."""
    if type(pipe).__name__ == "ChromaPipeline":
        return True
    return denoiser_name(pipe) == "unet" and pipe.unet.config.in_channels != _UNET_CHANNELS


def _sharing_class(pipe: Pipeline, *, inpaints: bool) -> Any:
    """Return the class of the pipeline that starts from an image, or None."""
    import diffusers

    name = type(pipe).__name__.replace("Pipeline", "InpaintPipeline" if inpaints else "Img2ImgPipeline")
    return getattr(diffusers, name, None)


def _sharing_components(pipe: Pipeline, *, inpaints: bool) -> Pipeline:
    """Return the pipeline that starts from an image, with the same components and default clip skip.

    Raises:
        ConfigError: diffusers has none for this kind of pipeline.
    """
    import diffusers

    kind = _sharing_class(pipe, inpaints=inpaints)
    if kind is None and inpaints:
        raise ConfigError(f"diffusers has no inpainting for a {type(pipe).__name__}: remove the mask.")
    if kind is None:
        raise ConfigError(f"A {type(pipe).__name__} cannot start from an image: remove the start image.")
    auto = diffusers.AutoPipelineForInpainting if inpaints else diffusers.AutoPipelineForImage2Image
    made: Any
    try:
        made = auto.from_pipe(pipe)
    except ValueError:  # it has no Chroma, for example
        flags = {key: pipe.config[key] for key in inspect.signature(kind).parameters if key in pipe.config}
        made = kind(**(flags | pipe.components))
    made.set_progress_bar_config(disable=True)
    set_clip_skip(made, default_clip_skip(pipe))
    return made


class _KeptLatents:
    """Keeps the latents outside a mask those of an image, as a callback after each step."""

    def __init__(
        self, pipe: Pipeline, image: Image.Image, mask: Image.Image, seed: int, after_step: AfterStep | None
    ) -> None:
        pixels = pipe.image_processor.preprocess(image).to(pipe._execution_device, pipe.vae.dtype)
        with torch.no_grad():
            encoded = pipe.vae.encode(pixels)
        latents = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
        config = pipe.vae.config
        latents = (latents - (config.get("shift_factor") or 0.0)) * config.scaling_factor
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(latents)
        white = pipe.image_processor.preprocess(mask.convert("RGB"))[:, :1] > 0
        area = nn.functional.adaptive_max_pool2d(white.float(), latents.shape[-2:]).to(latents).expand_as(latents)
        self._start, self._noise, self._mask = (_pack(pipe, part) for part in (latents, noise, area))
        self._after_step = after_step

    def __call__(self, pipe: Pipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Return the latents for the next step."""
        timesteps = pipe.scheduler.timesteps[-pipe.num_timesteps :]
        known = self._start
        if step + 1 < len(timesteps):
            known = _add_noise(pipe.scheduler, self._start, self._noise, timesteps[step + 1 : step + 2])
        latents = torch.where(self._mask > 0, tensors["latents"], known.to(tensors["latents"]))
        result = self._after_step(pipe, step, timestep, tensors | {"latents": latents}) if self._after_step else {}
        return {"latents": latents} | result


def _pack(pipe: Pipeline, latents: Tensor) -> Tensor:
    """Return latents (1, C, h, w) as the pipeline's denoiser takes them: as they are, or in tokens of 2 × 2 pixels."""
    pack = getattr(pipe, "_pack_latents", None)
    return pack(latents, *latents.shape) if pack else latents


def _add_noise(scheduler: Any, latents: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """Return latents at the noise level of a timestep; flow matching has another name for it."""
    if hasattr(scheduler, "scale_noise"):
        return scheduler.scale_noise(latents, timestep, noise)
    return scheduler.add_noise(latents, noise, timestep)
