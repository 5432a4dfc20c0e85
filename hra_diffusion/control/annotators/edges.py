"""Edges as conditions: thin lines, thick strokes, soft edges."""

from dataclasses import dataclass
from math import inf

import numpy as np
from PIL import Image

from hra_diffusion.control.annotators.annotator import Annotator, rgb_image, rgb_pixels, stretch
from hra_diffusion.control.opencv import cv2
from hra_diffusion.errors import ConfigError

_MAX_BLUR, _MAX_WIDTH = 32.0, 100.0
"""In pixels. Larger values leave nothing of most images, and take minutes for large ones."""


@dataclass(frozen=True, kw_only=True)
class Canny(Annotator):
    """Thin white edges on black (Canny, 1986), from the channel with the steepest gradient."""

    name = "canny"

    blur: float = 1.4
    """Standard deviation of the Gaussian blur before edge detection, in pixels, against grain; 0 for no blur."""
    low: float = 100.0
    """Lower threshold of the gradient: edges continue above it."""
    high: float = 200.0
    """Upper threshold of the gradient: edges begin above it."""

    def __post_init__(self) -> None:
        """Raise ConfigError when a setting is out of its range."""
        if not 0 <= self.low <= self.high < inf:
            raise ConfigError(f"Canny's thresholds are {self.low} and {self.high}: give 0 ≤ low ≤ high.")
        if not 0 <= self.blur <= _MAX_BLUR:
            raise ConfigError(f"Canny's blur is {self.blur}: give 0, for none, to {_MAX_BLUR:g} pixels.")

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the edges as white lines."""
        smooth = cv2.GaussianBlur(rgb_pixels(image), (0, 0), self.blur) if self.blur else rgb_pixels(image)
        return rgb_image(np.asarray(cv2.Canny(smooth, self.low, self.high), np.uint8))


@dataclass(frozen=True, kw_only=True)
class Scribble(Annotator):
    """Thick strokes, like a sketch: the edges of a blurred image, widened."""

    name = "scribble"

    blur: float = 2.0
    """Standard deviation of the blur, in pixels of an image with a shorter side of 512."""
    width: float = 6.0
    """Width of the strokes, in pixels of an image with a shorter side of 512."""

    def __post_init__(self) -> None:
        """Raise ConfigError when a setting is out of its range."""
        if not (0 <= self.blur <= _MAX_BLUR and 0 < self.width <= _MAX_WIDTH):
            raise ConfigError(
                f"A scribble's blur is {self.blur} and its width {self.width}: give pixels, a blur of 0 to "
                f"{_MAX_BLUR:g} and a width above 0, at most {_MAX_WIDTH:g}."
            )

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the edges as white strokes."""
        scale = min(image.size) / 512
        smooth = cv2.GaussianBlur(rgb_pixels(image), (0, 0), max(0.5, self.blur * scale))
        brush = max(2, round(self.width * scale))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (brush, brush))
        return rgb_image(np.asarray(cv2.dilate(cv2.Canny(smooth, 60, 120), disc), np.uint8))


@dataclass(frozen=True, kw_only=True)
class SoftEdge(Annotator):
    """The gradient from black to white; the steepest 1 % of the pixels are white."""

    name = "soft_edge"

    blur: float = 1.5
    """Standard deviation of the blur, in pixels of an image with a shorter side of 512."""

    def __post_init__(self) -> None:
        """Raise ConfigError when a setting is out of its range."""
        if not 0 <= self.blur <= _MAX_BLUR:
            raise ConfigError(f"The blur of soft edges is {self.blur}: give 0, for none, to {_MAX_BLUR:g} pixels.")

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the gradient in gray."""
        deviation = max(0.5, self.blur * min(image.size) / 512)
        smooth = cv2.GaussianBlur(rgb_pixels(image).astype(np.float32), (0, 0), deviation)
        steep = np.hypot(cv2.Scharr(smooth, cv2.CV_32F, 1, 0), cv2.Scharr(smooth, cv2.CV_32F, 0, 1)).max(axis=2)
        return rgb_image(stretch(steep, 0.0, float(np.quantile(steep, 0.99))))
