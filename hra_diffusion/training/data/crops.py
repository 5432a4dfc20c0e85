"""What training may see of an image: a few views, each cropped, mirrored and tinted in its own way.

Their number is small and fixed, so that each is encoded once; which views there are is a pure function of the seed, the
image and the settings. A step draws one of them at random.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from hra_diffusion.training.config import ImageConfig
from hra_diffusion.training.data.buckets import Size
from hra_diffusion.training.rng import stream

TINTS = 4
"""With jitter, each crop is seen in its own colors and in three others."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How one view is made."""

    position: float
    """Where the crop lies in what is too long: from 0, the left or upper end, to 1."""
    mirrored: bool
    tint: tuple[float, ...] = ()
    """Factors for brightness, contrast and saturation; none leaves the colors alone."""

    def crop(self, covering: Image.Image, size: Size) -> Image.Image:
        """Cut the view out of an image or mask that covers ``size``, without its tint."""
        left, top = (round(self.position * (whole - side)) for whole, side in zip(covering.size, size, strict=True))
        crop = covering.crop((left, top, left + size[0], top + size[1]))
        return ImageOps.mirror(crop) if self.mirrored else crop

    def sizes(self, original: Size, covering: Size, size: Size) -> tuple[int, ...]:
        """What SDXL is told of it: original height and width, top and left of the crop, its height and width.

        Top and left are those in the image that covers ``size``, mirrored as the view is.
        """
        left, top = (round(self.position * (whole - side)) for whole, side in zip(covering, size, strict=True))
        left = covering[0] - size[0] - left if self.mirrored else left
        return (*reversed(original), top, left, *reversed(size))

    def image(self, covering: Image.Image, size: Size) -> Image.Image:
        """Make the view of an image that covers ``size``."""
        image = self.crop(covering, size)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhancer, factor in zip(enhancers, self.tint, strict=False):
            image = enhancer(image).enhance(factor)
        return image


def cover(image: Image.Image, size: Size) -> Image.Image:
    """Scale an image so that it just covers ``size``."""
    return image.resize(covering_size(image.size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)


def covering_size(image: Size, size: Size) -> Size:
    """Return the size of an image once it is scaled to just cover ``size``."""
    scale = max(side / own for side, own in zip(size, image, strict=True))
    width, height = (max(side, round(scale * own)) for side, own in zip(size, image, strict=True))
    return width, height


def views(image: Size, size: Size, data: ImageConfig, seed: int, name: str) -> list[View]:
    """List the views of size ``size`` of an image.

    Args:
        image: size of the image.
        size: size of the views.
        data: says what may be done to the image.
        seed: the run's.
        name: tells this image from others; its tints depend on it.
    """
    positions = (0.5,) if data.center_crop or covering_size(image, size) == size else (0.5, 0.0, 1.0)
    mirrors = (False, True) if data.random_flip else (False,)
    variants = list(product(range(TINTS if data.color_jitter else 1), mirrors, positions))
    rng = stream(seed, f"tints of {name}")
    factors = (1 + data.color_jitter * (2 * torch.rand(len(variants), 3, generator=rng) - 1)).tolist()
    return [
        View(position=position, mirrored=mirrored, tint=tuple(tint) if shade else ())
        for (shade, mirrored, position), tint in zip(variants, factors, strict=True)
    ]


def to_tensor(image: Image.Image) -> Tensor:
    """Turn an RGB image into a float32 tensor of shape (3, height, width) in [−1, 1], as autoencoders take it."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1
