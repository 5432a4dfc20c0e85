"""Landmarks of faces and bodies as conditions."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from hra_diffusion.control import models
from hra_diffusion.control.annotators.annotator import Annotator, rgb_image, rgb_pixels
from hra_diffusion.control.opencv import cv2


@dataclass(frozen=True, kw_only=True)
class Landmarks(Annotator):
    """Points of a face or a body by mediapipe, joined by lines; black where none is detected."""

    mirrors = False

    model: str = ""
    """Path of mediapipe's model, a .task file."""

    def check(self) -> None:
        """Load mediapipe's model; see :meth:`Annotator.check`."""
        models.landmarker(self.name, self.model)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the landmarks and their connections on black."""
        canvas = np.zeros((image.height, image.width, 3), np.uint8)
        points = self.points(image)
        if points is not None:
            width = max(1, min(image.size) // 256)
            hues = np.linspace(0, 179, len(points), endpoint=False)
            hsv = np.stack([hues, np.full_like(hues, 255), np.full_like(hues, 255)], axis=1).astype(np.uint8)
            colors = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0].tolist()
            pixels = np.rint(points).astype(int).tolist()
            for start, end in models.landmarker(self.name, self.model).connections:
                cv2.line(canvas, pixels[start], pixels[end], colors[start], width, cv2.LINE_AA)
            for pixel, color in zip(pixels, colors, strict=True):
                cv2.circle(canvas, pixel, width, color, -1, cv2.LINE_AA)
        return rgb_image(canvas)

    def points(self, image: Image.Image) -> npt.NDArray[np.float32] | None:
        """Return the points (n, 2) of the first face or body in pixels; None without one."""
        return models.landmarker(self.name, self.model)(rgb_image(rgb_pixels(image)))


@dataclass(frozen=True, kw_only=True)
class Face(Landmarks):
    """The landmarks of a face."""

    name = "face"


@dataclass(frozen=True, kw_only=True)
class Pose(Landmarks):
    """The joints of a body."""

    name = "pose"
