"""Depth and surface normals as conditions."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from hra_diffusion.control import models
from hra_diffusion.control.annotators.annotator import Annotator, Pixels, rgb_image, rgb_pixels, stretch
from hra_diffusion.control.opencv import cv2
from hra_diffusion.errors import ConfigError, ImageError

_MAX_CHANNEL_DIFFERENCE = 32
"""Between the channels of a gray image after lossy compression."""


@dataclass(frozen=True, kw_only=True)
class _DepthAnnotator(Annotator):
    """An annotator of depth: of a depth model of transformers, or of a gray image."""

    model: str | None = None
    """The model's folder or name on the hub; without one, the image is a depth map of 8 or 16 bits or floats."""

    @property
    def reads_any_image(self) -> bool:
        """Return whether a model estimates depth; otherwise images must be depth maps."""
        return self.model is not None

    def check(self) -> None:
        """Load the depth model, if any; see :meth:`Annotator.check`."""
        if self.model:
            models.depth_estimator(self.model)

    def depth_map(self, image: Image.Image) -> Pixels:
        """Return the depth of each pixel, the nearest 255, the farthest 0: shape (height, width).

        Raises:
            ImageError: there is no model, and the image has colors.
        """
        nearness = self._nearness(image)
        return stretch(nearness, float(nearness.min()), float(nearness.max()))

    def _nearness(self, image: Image.Image) -> npt.NDArray[np.float32]:
        if self.model:
            return models.depth_estimator(self.model)(rgb_image(rgb_pixels(image)))
        if image.mode[0] in "IF":
            return np.asarray(image, np.float32)
        colors = rgb_pixels(image)
        if np.ptp(colors, axis=2).max() > _MAX_CHANNEL_DIFFERENCE:
            raise ImageError(
                "An image with colors is no depth map: give a gray image, or name a depth model as the annotator's "
                "model."
            )
        return np.asarray(Image.fromarray(colors).convert("L"), np.float32)


@dataclass(frozen=True, kw_only=True)
class Depth(_DepthAnnotator):
    """Depth from black to white; the nearest pixel is white."""

    name = "depth"

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the depth in gray."""
        return rgb_image(self.depth_map(image))


@dataclass(frozen=True, kw_only=True)
class Normal(_DepthAnnotator):
    """Surface normals n ∝ (−∂z/∂x, −∂z/∂y, 1/k) as colors (n + 1) / 2, of the depth z in [0, 1].

    x points to the right, y up, z at the viewer.
    """

    name = "normal"
    mirrors = False

    relief: float = 64.0
    """Range k of the depth in pixels; a larger one makes slopes steeper."""

    def __post_init__(self) -> None:
        """Raise ConfigError when the relief is out of its range."""
        if not 0 < self.relief < math.inf:
            raise ConfigError(f"The relief of normals is {self.relief}: give a number above 0.")

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the normals as colors."""
        z = self.depth_map(image).astype(np.float32) / 255
        z = cv2.GaussianBlur(z, (0, 0), max(0.5, min(image.size) / 256))
        down, right = np.gradient(z)
        normals = np.stack([-right, down, np.full_like(z, 1 / self.relief)], axis=2)
        normals /= np.linalg.norm(normals, axis=2, keepdims=True)
        return rgb_image(np.rint((normals + 1) * 127.5).astype(np.uint8))
