"""What every annotator is: a map from pictures to conditions.

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
    """Maps pictures to conditions."""

    name: ClassVar[str]
    labels: ClassVar[bool] = False
    """Whether its colours stand for labels, which must not be mixed when a condition is scaled."""
    mirrors: ClassVar[bool] = True
    """Whether the mirrored condition is the condition of the mirrored picture."""

    @property
    def reads_transparency(self) -> bool:
        """Whether the transparency of a picture tells it something, and is no window on a background."""
        return False

    @property
    def reads_any_picture(self) -> bool:
        """Whether any picture has a condition, what a model has drawn too."""
        return True

    def __call__(self, picture: Image.Image) -> Image.Image:
        """Return the condition of a picture of mode RGB, or RGBA where its transparency counts; RGB, of its size."""
        pixels = self.annotate(picture)
        return Image.fromarray(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2))

    @abstractmethod
    def annotate(self, picture: Image.Image) -> Pixels:
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
    def reads_any_picture(self) -> bool:
        """See :class:`Annotator`."""
        return False

    def annotate(self, picture: Image.Image) -> Pixels:
        """Return the colours."""
        return np.asarray(picture.convert("RGB"))


def rgb(picture: Image.Image) -> Pixels:
    """Return the colours as uint8 of shape (height, width, 3), what is transparent over white."""
    if picture.mode == "RGBA":
        white = Image.new("RGB", picture.size, "white")
        white.paste(picture, mask=picture.getchannel("A"))
        picture = white
    return np.asarray(picture.convert("RGB"))


def stretch(values: npt.NDArray[np.float32], low: float, high: float) -> Pixels:
    """Map ``low`` … ``high`` to 0 … 255; everything to 0 where they are the same."""
    span = high - low
    return np.rint(np.clip((values - low) / span if span > 0 else values * 0, 0, 1) * 255).astype(np.uint8)
