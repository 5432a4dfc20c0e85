"""Conditions of regions: blocks of color, and what is where."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from hra_diffusion.control import models
from hra_diffusion.control.annotators.annotator import Annotator, Pixels, rgb
from hra_diffusion.errors import ConfigError, ImageError

_MOST_BLOCKS = 1024


@dataclass(frozen=True, kw_only=True)
class Color(Annotator):
    """Where which colors are: blocks of the mean color."""

    name = "color"

    blocks: int = 8
    """Along the shorter side."""

    def __post_init__(self) -> None:
        """Raise ConfigError when there are no blocks."""
        if not 1 <= self.blocks <= _MOST_BLOCKS:
            raise ConfigError(f"The number of blocks is {self.blocks}: give 1 to {_MOST_BLOCKS}.")

    def annotate(self, image: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        short = min(image.size)
        width, height = (max(1, round(side * self.blocks / short)) for side in image.size)
        small = Image.fromarray(rgb(image)).resize((width, height), Image.Resampling.BOX)
        return np.asarray(small.resize(image.size, Image.Resampling.NEAREST))


@dataclass(frozen=True, kw_only=True)
class Segmentation(Annotator):
    """What is where, a color a label: by a segmentation model of transformers, or by the image's transparency."""

    name = "segmentation"
    labels = True

    model: str | None = None
    """Folder or name on the hub; without one, what is opaque is the object, label 1, on the background, label 0."""

    @property
    def reads_transparency(self) -> bool:
        """See :class:`Annotator`."""
        return self.model is None

    @property
    def reads_any_image(self) -> bool:
        """See :class:`Annotator`."""
        return self.model is not None

    def check(self) -> None:
        """See :class:`Annotator`."""
        if self.model:
            models.segmenter(self.model)

    def annotate(self, image: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        return palette()[self.label_map(image)]

    def label_map(self, image: Image.Image) -> Pixels:
        """Return the label of each pixel, below 256: shape (height, width)."""
        if self.model:
            return models.segmenter(self.model)(Image.fromarray(rgb(image)))
        if not image.has_transparency_data:
            raise ImageError(
                "An image without transparency has no object to be told from its background: give one with "
                "transparency, a segmentation model, or conditions that are drawn already."
            )
        return (np.asarray(image.convert("RGBA").getchannel("A")) > 127).astype(np.uint8)


def palette() -> Pixels:
    """Colors of 256 labels, label 0 black: those of PASCAL VOC, whose bits are spread over the channels."""
    labels = np.arange(256)
    channels = [sum(((labels >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)
