"""Regions as conditions: blocks of color, segmentation maps."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from hra_diffusion.control import models
from hra_diffusion.control.annotators.annotator import Annotator, Pixels, rgb_image, rgb_pixels
from hra_diffusion.errors import ConfigError, ImageError

_MAX_BLOCKS = 1024


@dataclass(frozen=True, kw_only=True)
class Color(Annotator):
    """The layout of colors: blocks of the mean color."""

    name = "color"

    blocks: int = 8
    """Number of blocks along the shorter side."""

    def __post_init__(self) -> None:
        """Raise ConfigError when the number of blocks is out of its range."""
        if not 1 <= self.blocks <= _MAX_BLOCKS:
            raise ConfigError(f"The number of blocks is {self.blocks}: give 1 to {_MAX_BLOCKS}.")

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the blocks of color."""
        short = min(image.size)
        width, height = (max(1, round(side * self.blocks / short)) for side in image.size)
        small = rgb_image(rgb_pixels(image)).resize((width, height), Image.Resampling.BOX)
        return small.resize(image.size, Image.Resampling.NEAREST)


@dataclass(frozen=True, kw_only=True)
class Segmentation(Annotator):
    """A color for each label, by a segmentation model of transformers or by the image's transparency."""

    name = "segmentation"
    labels = True

    model: str | None = None
    """The model's folder or name on the hub; without one, opaque pixels are label 1, the object, others label 0."""

    @property
    def reads_transparency(self) -> bool:
        """Return whether the object comes from transparency, not from a model."""
        return self.model is None

    @property
    def reads_any_image(self) -> bool:
        """Return whether a model segments images; otherwise they need transparency."""
        return self.model is not None

    def check(self) -> None:
        """Load the segmentation model, if any; see :meth:`Annotator.check`."""
        if self.model:
            models.segmenter(self.model)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the labels as colors of :func:`palette`."""
        return rgb_image(palette()[self.label_map(image)])

    def label_map(self, image: Image.Image) -> Pixels:
        """Return the label of each pixel, below 256, as uint8 of shape (height, width).

        Raises:
            ImageError: the annotator has no model, and the image no transparency.
        """
        if self.model:
            return models.segmenter(self.model)(rgb_image(rgb_pixels(image)))
        if not image.has_transparency_data:
            raise ImageError(
                "An image without transparency cannot be divided into object and background: give an image with "
                "transparency, a segmentation model, or finished conditions."
            )
        return (np.asarray(image.convert("RGBA").getchannel("A")) > 127).astype(np.uint8)


def palette() -> Pixels:
    """Return the colors of 256 labels as in PASCAL VOC: uint8 of shape (256, 3); label 0 is black."""
    labels = np.arange(256)
    channels = [sum(((labels >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)
