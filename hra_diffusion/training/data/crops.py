"""Augmented crops of an image: a few of them, each at its position, flipped or not, with its color jitter.

Their number is small and fixed, so that each is encoded once. The crops are a pure function of the seed, the image and
the settings. A step samples one of them.
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

COLOR_VARIANTS = 4
"""With color jitter, each crop occurs in the image's colors and in three others."""


@dataclass(frozen=True, kw_only=True)
class Crop:
    """One augmented crop of an image."""

    position: float
    """Position along the side that is too long: from 0, the left or upper end, to 1."""
    flipped: bool
    """Whether it is flipped horizontally."""
    jitter: tuple[float, ...] = ()
    """Factors of brightness, contrast and saturation; () keeps the colors."""

    def __repr__(self) -> str:
        """Return the text of version 0.1, because names of cached latents are digests of it."""
        return f"View(position={self.position!r}, mirrored={self.flipped!r}, tint={self.jitter!r})"

    def cut(self, covering: Image.Image, size: Size) -> Image.Image:
        """Cut the crop out of an image or mask that covers ``size``, without color jitter."""
        left, top = (round(self.position * (whole - side)) for whole, side in zip(covering.size, size, strict=True))
        crop = covering.crop((left, top, left + size[0], top + size[1]))
        return ImageOps.mirror(crop) if self.flipped else crop

    def apply(self, covering: Image.Image, size: Size) -> Image.Image:
        """Return the crop of an image that covers ``size``, with color jitter."""
        image = self.cut(covering, size)
        enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for enhancer, factor in zip(enhancers, self.jitter, strict=False):
            image = enhancer(image).enhance(factor)
        return image

    def time_ids(self, original: Size, covering: Size, size: Size) -> tuple[int, ...]:
        """Return SDXL's size conditioning: original height and width, top and left, crop height and width.

        Top and left are positions in the image that covers ``size``, flipped as the crop is.
        """
        left, top = (round(self.position * (whole - side)) for whole, side in zip(covering, size, strict=True))
        left = covering[0] - size[0] - left if self.flipped else left
        return (*reversed(original), top, left, *reversed(size))


def cover(image: Image.Image, size: Size) -> Image.Image:
    """Resize an image to the smallest size that covers ``size``."""
    return image.resize(covering_size(image.size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)


def covering_size(image: Size, size: Size) -> Size:
    """Return the smallest size with the image's aspect ratio that covers ``size``."""
    scale = max(side / length for side, length in zip(size, image, strict=True))
    width, height = (max(side, round(scale * length)) for side, length in zip(size, image, strict=True))
    return width, height


def augmented_crops(image: Size, size: Size, settings: ImageConfig, seed: int, name: str) -> list[Crop]:
    """List the crops of an image.

    Args:
        image: size of the image.
        size: size of the crops.
        settings: the augmentations: center crop, flip, color jitter.
        seed: the run's seed.
        name: identifies the image; its color jitter depends on it.
    """
    positions = (0.5,) if settings.center_crop or covering_size(image, size) == size else (0.5, 0.0, 1.0)
    flips = (False, True) if settings.random_flip else (False,)
    variants = list(product(range(COLOR_VARIANTS if settings.color_jitter else 1), flips, positions))
    rng = stream(seed, f"tints of {name}")  # the stream's name decides the numbers: it stays
    factors = (1 + settings.color_jitter * (2 * torch.rand(len(variants), 3, generator=rng) - 1)).tolist()
    return [
        Crop(position=position, flipped=flipped, jitter=tuple(jitter) if variant else ())
        for (variant, flipped, position), jitter in zip(variants, factors, strict=True)
    ]


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an RGB image to a float32 tensor of shape (3, height, width) in [−1, 1], as autoencoders take it."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1
