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

_COLOURLESS = 32
"""Channels that differ by no more are of a grey picture, saved with loss."""


@dataclass(frozen=True, kw_only=True)
class _OfDepth(Annotator):
    """What follows from the depth of a picture."""

    model: str | None = None
    """Folder or name on the hub; without one, the picture itself is a map of depth, of 8 or 16 bits or floats."""

    @property
    def reads_any_picture(self) -> bool:
        """See :class:`Annotator`."""
        return self.model is not None

    def check(self) -> None:
        """See :class:`Annotator`."""
        if self.model:
            models.depth_estimator(self.model)


@dataclass(frozen=True, kw_only=True)
class Depth(_OfDepth):
    """How near everything is, the nearest white: by a depth model of transformers, or as the grey picture says."""

    name = "depth"

    def annotate(self, picture: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        near = self.nearness(picture)
        return stretch(near, float(near.min()), float(near.max()))

    def nearness(self, picture: Image.Image) -> npt.NDArray[np.float32]:
        """Return a number for each pixel, larger where it is nearer: shape (height, width).

        Raises:
            ImageError: there is no model, and the picture has colours.
        """
        if self.model:
            return models.depth_estimator(self.model)(Image.fromarray(rgb(picture)))
        if picture.mode[0] in "IF":
            return np.asarray(picture, np.float32)
        colours = rgb(picture)
        if np.ptp(colours, axis=2).max() > _COLOURLESS:
            raise ImageError(
                "A picture with colours is no map of depth, which is grey: give one, or name a model that sees how "
                "near things are as the annotator's."
            )
        return np.asarray(Image.fromarray(colours).convert("L"), np.float32)


@dataclass(frozen=True, kw_only=True)
class Normal(_OfDepth):
    """Which way surfaces face, n ∝ (−∂z/∂x, −∂z/∂y, 1/k) as a colour (n + 1) / 2, of the depth z in [0, 1]."""

    name = "normal"
    mirrors = False

    relief: float = 64.0
    """How much deeper the picture is than wide, k, in widths of a pixel."""

    def __post_init__(self) -> None:
        """Raise ConfigError when the settings mean nothing."""
        if not 0 < self.relief < math.inf:
            raise ConfigError(f"The relief of normals is {self.relief}: give a number above 0.")

    def annotate(self, picture: Image.Image) -> Pixels:
        """See :class:`Annotator`; x points to the right, y up, z at the viewer."""
        z = Depth(model=self.model).annotate(picture).astype(np.float32) / 255
        z = cv2.GaussianBlur(z, (0, 0), max(0.5, min(picture.size) / 256))
        down, right = np.gradient(z)
        normals = np.stack([-right, down, np.full_like(z, 1 / self.relief)], axis=2)
        normals /= np.linalg.norm(normals, axis=2, keepdims=True)
        return np.rint((normals + 1) * 127.5).astype(np.uint8)
