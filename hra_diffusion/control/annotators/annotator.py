"""What every annotator is: a map from images to conditions.

It is a frozen dataclass, so its name and fields say everything about it; both are saved beside the encoder that was
trained for it.
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
    """Maps images to conditions."""

    name: ClassVar[str]
    labels: ClassVar[bool] = False
    """Whether its colors stand for labels, which must not be mixed when a condition is scaled."""
    mirrors: ClassVar[bool] = True
    """Whether the mirrored condition is the condition of the mirrored image."""

    @property
    def reads_transparency(self) -> bool:
        """Whether the transparency of an image tells it something, and is no window on a background."""
        return False

    @property
    def reads_any_image(self) -> bool:
        """Whether any image has a condition, what a model has drawn too."""
        return True

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the condition of an image of mode RGB, or RGBA where its transparency counts; RGB, of its size."""
        pixels = self.annotate(image)
        return Image.fromarray(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2))

    @abstractmethod
    def annotate(self, image: Image.Image) -> Pixels:
        """Compute the condition: uint8 of shape (height, width), or (height, width, 3)."""

    def check(self) -> None:  # noqa: B027 (most have nothing to check)
        """Make sure that it can work.

        Raises:
            ModelError: its model cannot be had.
        """


@dataclass(frozen=True, kw_only=True)
class Given(Annotator):
    """What it is given is a condition already."""

    name = "given"

    @property
    def reads_any_image(self) -> bool:
        """See :class:`Annotator`."""
        return False

    def annotate(self, image: Image.Image) -> Pixels:
        """Return the colors."""
        return np.asarray(image.convert("RGB"))


def rgb(image: Image.Image) -> Pixels:
    """Return the colors as uint8 of shape (height, width, 3), what is transparent over white."""
    if image.mode == "RGBA":
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    return np.asarray(image.convert("RGB"))


def stretch(values: npt.NDArray[np.float32], low: float, high: float) -> Pixels:
    """Map ``low`` … ``high`` to 0 … 255; everything to 0 where they are the same."""
    span = high - low
    return np.rint(np.clip((values - low) / span if span > 0 else values * 0, 0, 1) * 255).astype(np.uint8)
