"""Conditions of relief: how near everything is, and which way its surfaces face."""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from hra_diffusion.control import models
from hra_diffusion.control.annotators.annotator import Annotator, Pixels, rgb, stretch
from hra_diffusion.errors import ConfigError, ImageError

_COLORLESS = 32
"""Channels that differ by no more are of a gray image, saved with loss."""


@dataclass(frozen=True, kw_only=True)
class _OfDepth(Annotator):
    """What follows from the depth of an image."""

    model: str | None = None
    """Folder or name on the hub; without one, the image itself is a map of depth, of 8 or 16 bits or floats."""

    @property
    def reads_any_image(self) -> bool:
        """See :class:`Annotator`."""
        return self.model is not None

    def check(self) -> None:
        """See :class:`Annotator`."""
        if self.model:
            models.depth_estimator(self.model)


@dataclass(frozen=True, kw_only=True)
class Depth(_OfDepth):
    """How near everything is, the nearest white: by a depth model of transformers, or as the gray image says."""

    name = "depth"

    def annotate(self, image: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        near = self.nearness(image)
        return stretch(near, float(near.min()), float(near.max()))

    def nearness(self, image: Image.Image) -> npt.NDArray[np.float32]:
        """Return a number for each pixel, larger where it is nearer: shape (height, width).

        Raises:
            ImageError: there is no model, and the image has colors.
        """
        if self.model:
            return models.depth_estimator(self.model)(Image.fromarray(rgb(image)))
        if image.mode[0] in "IF":
            return np.asarray(image, np.float32)
        colors = rgb(image)
        if np.ptp(colors, axis=2).max() > _COLORLESS:
            raise ImageError(
                "An image with colors is no map of depth, which is gray: give one, or name a model that sees how "
                "near things are as the annotator's."
            )
        return np.asarray(Image.fromarray(colors).convert("L"), np.float32)


@dataclass(frozen=True, kw_only=True)
class Normal(_OfDepth):
    """Which way surfaces face, n ∝ (−∂z/∂x, −∂z/∂y, 1/k) as a color (n + 1) / 2, of the depth z in [0, 1]."""

    name = "normal"
    mirrors = False

    relief: float = 64.0
    """How much deeper the image is than wide, k, in widths of a pixel."""

    def __post_init__(self) -> None:
        """Raise ConfigError when the settings mean nothing."""
        if not 0 < self.relief < math.inf:
            raise ConfigError(f"The relief of normals is {self.relief}: give a number above 0.")

    def annotate(self, image: Image.Image) -> Pixels:
        """See :class:`Annotator`; x points to the right, y up, z at the viewer."""
        z = Depth(model=self.model).annotate(image).astype(np.float32) / 255
        z = cv2.GaussianBlur(z, (0, 0), max(0.5, min(image.size) / 256))
        down, right = np.gradient(z)
        normals = np.stack([-right, down, np.full_like(z, 1 / self.relief)], axis=2)
        normals /= np.linalg.norm(normals, axis=2, keepdims=True)
        return np.rint((normals + 1) * 127.5).astype(np.uint8)
