"""The interface of annotators: maps from images to conditions.

An annotator is a frozen dataclass. Its name and its fields are saved beside the encoder that was trained with it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Annotator(ABC):
    """A map from images to conditions."""

    name: ClassVar[str]
    labels: ClassVar[bool] = False
    """Whether colors are labels, which must not be mixed when a condition is scaled."""
    mirrors: ClassVar[bool] = True
    """Whether the mirrored condition is the condition of the mirrored image."""

    @property
    def reads_transparency(self) -> bool:
        """Whether transparency is part of the input; otherwise images come on a background."""
        return False

    @property
    def reads_any_image(self) -> bool:
        """Whether every image has a condition, generated images included."""
        return True

    @abstractmethod
    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the condition of an image.

        Args:
            image: of mode RGB, or RGBA for an annotator with :attr:`reads_transparency`.

        Returns:
            An RGB image of the same size.
        """

    def check(self) -> None:  # noqa: B027 (most annotators need no model)
        """Load the annotator's model, if it needs one.

        Raises:
            ConfigError: a package is not installed.
            ModelError: the model cannot be loaded.
        """


@dataclass(frozen=True, kw_only=True)
class Given(Annotator):
    """The identity: images are conditions already."""

    name = "given"

    @property
    def reads_any_image(self) -> bool:
        """Return False: an ordinary image is no condition."""
        return False

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the colors of the image."""
        return image.convert("RGB")


def rgb_pixels(image: Image.Image) -> Pixels:
    """Return the colors as uint8 of shape (height, width, 3), transparency over white."""
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    return np.asarray(image.convert("RGB"))


def rgb_image(pixels: Pixels) -> Image.Image:
    """Return pixels of shape (height, width) or (height, width, 3) as an RGB image."""
    return Image.fromarray(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2))


def stretch(values: npt.NDArray[np.float32], low: float, high: float) -> Pixels:
    """Map ``low`` … ``high`` to 0 … 255; where both are equal, everything to 0."""
    span = high - low
    return np.rint(np.clip((values - low) / span if span > 0 else values * 0, 0, 1) * 255).astype(np.uint8)
