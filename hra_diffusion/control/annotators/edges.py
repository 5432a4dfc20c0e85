"""Conditions of edges: thin, thick as by hand, and how steep."""

from dataclasses import dataclass
from math import inf

import cv2
import numpy as np
from PIL import Image

from hra_diffusion.control.annotators.annotator import Annotator, Pixels, rgb, stretch
from hra_diffusion.errors import ConfigError

_MOST_BLUR, _MOST_WIDTH = 32.0, 100.0
"""In pixels: beyond them nothing is left of most images, and large ones take minutes."""


@dataclass(frozen=True, kw_only=True)
class Canny(Annotator):
    """Thin white edges on black (Canny, 1986), where the steepest channel's gradient is."""

    name = "canny"

    blur: float = 1.4
    """Deviation of the Gaussian that goes before, in pixels, so that grain has no edges; 0 is none, as many do it."""
    low: float = 100.0
    """Edges go on where the gradient is above this."""
    high: float = 200.0
    """Edges begin where the gradient is above this."""

    def __post_init__(self) -> None:
        """Raise ConfigError when the settings mean nothing."""
        if not 0 <= self.low <= self.high < inf:
            raise ConfigError(f"Canny's thresholds are {self.low} and {self.high}: give 0 ≤ low ≤ high.")
        if not 0 <= self.blur <= _MOST_BLUR:
            raise ConfigError(f"Canny's blur is {self.blur}: give 0, for none, to {_MOST_BLUR:g} pixels.")

    def annotate(self, image: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        smooth = cv2.GaussianBlur(rgb(image), (0, 0), self.blur) if self.blur else rgb(image)
        return np.asarray(cv2.Canny(smooth, self.low, self.high), np.uint8)


@dataclass(frozen=True, kw_only=True)
class Scribble(Annotator):
    """A few thick strokes, as by hand: the edges of a blurred image, widened."""

    name = "scribble"

    blur: float = 2.0
    """Deviation of the blur, in pixels of an image of 512."""
    width: float = 6.0
    """Width of the strokes, likewise."""

    def __post_init__(self) -> None:
        """Raise ConfigError when the settings mean nothing."""
        if not (0 <= self.blur <= _MOST_BLUR and 0 < self.width <= _MOST_WIDTH):
            raise ConfigError(
                f"A scribble's blur is {self.blur} and its width {self.width}: give pixels, a blur of 0 to "
                f"{_MOST_BLUR:g} and a width above 0, at most {_MOST_WIDTH:g}."
            )

    def annotate(self, image: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        scale = min(image.size) / 512
        smooth = cv2.GaussianBlur(rgb(image), (0, 0), max(0.5, self.blur * scale))
        brush = max(2, round(self.width * scale))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (brush, brush))
        return np.asarray(cv2.dilate(cv2.Canny(smooth, 60, 120), disc), np.uint8)


@dataclass(frozen=True, kw_only=True)
class SoftEdge(Annotator):
    """How steep an image is, from black to white, its steepest hundredth being white."""

    name = "soft_edge"

    blur: float = 1.5
    """Deviation of the blur, in pixels of an image of 512."""

    def __post_init__(self) -> None:
        """Raise ConfigError when the settings mean nothing."""
        if not 0 <= self.blur <= _MOST_BLUR:
            raise ConfigError(f"The blur of soft edges is {self.blur}: give 0, for none, to {_MOST_BLUR:g} pixels.")

    def annotate(self, image: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        deviation = max(0.5, self.blur * min(image.size) / 512)
        smooth = cv2.GaussianBlur(rgb(image).astype(np.float32), (0, 0), deviation)
        steep = np.hypot(cv2.Scharr(smooth, cv2.CV_32F, 1, 0), cv2.Scharr(smooth, cv2.CV_32F, 0, 1)).max(axis=2)
        return stretch(steep, 0.0, float(np.quantile(steep, 0.99)))
