"""Conditions of faces and bodies."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from hra_diffusion.control import models
from hra_diffusion.control.annotators.annotator import Annotator, Pixels, rgb


@dataclass(frozen=True, kw_only=True)
class Landmarks(Annotator):
    """Points of a face or a body that mediapipe finds, joined by lines; black where it finds none."""

    mirrors = False

    model: str = ""
    """Path of mediapipe's model, a .task file."""

    def check(self) -> None:
        """See :class:`Annotator`."""
        models.landmarker(self.name, self.model)

    def annotate(self, image: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        canvas = np.zeros((image.height, image.width, 3), np.uint8)
        points = self.points(image)
        if points is not None:
            width = max(1, min(image.size) // 256)
            hues = np.linspace(0, 179, len(points), endpoint=False)
            hsv = np.stack([hues, np.full_like(hues, 255), np.full_like(hues, 255)], axis=1).astype(np.uint8)
            colors = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0].tolist()
            spots = np.rint(points).astype(int).tolist()
            for one, other in models.landmarker(self.name, self.model).connections:
                cv2.line(canvas, spots[one], spots[other], colors[one], width, cv2.LINE_AA)
            for spot, color in zip(spots, colors, strict=True):
                cv2.circle(canvas, spot, width, color, -1, cv2.LINE_AA)
        return canvas

    def points(self, image: Image.Image) -> npt.NDArray[np.float32] | None:
        """Return the points (n, 2) in pixels of the first face or body, None where there is none."""
        return models.landmarker(self.name, self.model)(Image.fromarray(rgb(image)))


@dataclass(frozen=True, kw_only=True)
class Face(Landmarks):
    """The landmarks of a face."""

    name = "face"


@dataclass(frozen=True, kw_only=True)
class Pose(Landmarks):
    """The joints of a body."""

    name = "pose"
