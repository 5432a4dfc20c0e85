"""Picture → condition: the same code before training and when pictures are drawn.

An annotator maps an RGB picture to an RGB picture of the same size that holds what is to be kept of it: its edges, its
depth, who stands where. It is a frozen dataclass, so its name and fields say everything about it; both are saved beside
the encoder that was trained for it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from hra_diffusion.control import models
from hra_diffusion.errors import ConfigError, ImageError

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Annotator(ABC):
    """Maps pictures to conditions."""

    name: ClassVar[str]
    labels: ClassVar[bool] = False
    """Whether its colours stand for labels, which must not be mixed when a condition is scaled."""
    mirrors: ClassVar[bool] = True
    """Whether the mirrored condition is the condition of the mirrored picture."""

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

    def annotate(self, picture: Image.Image) -> Pixels:
        """Return the colours."""
        return np.asarray(picture.convert("RGB"))


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
        if not 0 <= self.low <= self.high:
            raise ConfigError(f"Canny's thresholds are {self.low} and {self.high}: give 0 ≤ low ≤ high.")
        if self.blur < 0:
            raise ConfigError(f"Canny's blur is {self.blur}: give a deviation in pixels, 0 for none.")

    def annotate(self, picture: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        smooth = cv2.GaussianBlur(rgb(picture), (0, 0), self.blur) if self.blur else rgb(picture)
        return np.asarray(cv2.Canny(smooth, self.low, self.high), np.uint8)


@dataclass(frozen=True, kw_only=True)
class Scribble(Annotator):
    """A few thick strokes, as by hand: the edges of a blurred picture, widened."""

    name = "scribble"

    blur: float = 2.0
    """Deviation of the blur, in pixels of a picture of 512."""
    width: float = 6.0
    """Width of the strokes, likewise."""

    def annotate(self, picture: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        scale = min(picture.size) / 512
        smooth = cv2.GaussianBlur(rgb(picture), (0, 0), max(0.5, self.blur * scale))
        brush = max(2, round(self.width * scale))
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (brush, brush))
        return np.asarray(cv2.dilate(cv2.Canny(smooth, 60, 120), disc), np.uint8)


@dataclass(frozen=True, kw_only=True)
class SoftEdge(Annotator):
    """How steep a picture is, from black to white, its steepest hundredth being white."""

    name = "soft_edge"

    blur: float = 1.5
    """Deviation of the blur, in pixels of a picture of 512."""

    def annotate(self, picture: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        deviation = max(0.5, self.blur * min(picture.size) / 512)
        smooth = cv2.GaussianBlur(rgb(picture).astype(np.float32), (0, 0), deviation)
        steep = np.hypot(cv2.Scharr(smooth, cv2.CV_32F, 1, 0), cv2.Scharr(smooth, cv2.CV_32F, 0, 1)).max(axis=2)
        return stretch(steep, 0.0, float(np.quantile(steep, 0.99)))


@dataclass(frozen=True, kw_only=True)
class Colour(Annotator):
    """Where which colours are: blocks of the mean colour."""

    name = "color"

    blocks: int = 8
    """Along the shorter side."""

    def __post_init__(self) -> None:
        """Raise ConfigError when there are no blocks."""
        if self.blocks < 1:
            raise ConfigError(f"The number of blocks is {self.blocks}: give at least 1.")

    def annotate(self, picture: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        short = min(picture.size)
        width, height = (max(1, round(side * self.blocks / short)) for side in picture.size)
        small = Image.fromarray(rgb(picture)).resize((width, height), Image.Resampling.BOX)
        return np.asarray(small.resize(picture.size, Image.Resampling.NEAREST))


@dataclass(frozen=True, kw_only=True)
class Segmentation(Annotator):
    """What is where, a colour a label: by a segmentation model of transformers, or by the picture's transparency."""

    name = "segmentation"
    labels = True

    model: str | None = None
    """Folder or name on the hub; without one, what is opaque is the object, label 1, on the background, label 0."""

    def check(self) -> None:
        """See :class:`Annotator`."""
        if self.model:
            models.segmenter(self.model)

    def annotate(self, picture: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        return palette()[self.label_map(picture)]

    def label_map(self, picture: Image.Image) -> Pixels:
        """Return the label of each pixel, below 256: shape (height, width)."""
        if self.model:
            return models.segmenter(self.model)(Image.fromarray(rgb(picture)))
        if not picture.has_transparency_data:
            raise ImageError(
                "A picture without transparency has no object to be told from its background: give one with "
                "transparency, a segmentation model, or conditions that are drawn already."
            )
        return (np.asarray(picture.convert("RGBA").getchannel("A")) > 127).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Depth(Annotator):
    """How near everything is, the nearest white: by a depth model of transformers, or as the grey picture says."""

    name = "depth"

    model: str | None = None
    """Folder or name on the hub; without one, the picture itself is a map of depth, of 8 or 16 bits or floats."""

    def check(self) -> None:
        """See :class:`Annotator`."""
        if self.model:
            models.depth_estimator(self.model)

    def annotate(self, picture: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        near = self.nearness(picture)
        return stretch(near, float(near.min()), float(near.max()))

    def nearness(self, picture: Image.Image) -> npt.NDArray[np.float32]:
        """Return a number for each pixel, larger where it is nearer: shape (height, width)."""
        if self.model:
            return models.depth_estimator(self.model)(Image.fromarray(rgb(picture)))
        grey = picture if picture.mode[0] in "IF" else picture.convert("L")
        return np.asarray(grey, np.float32)


@dataclass(frozen=True, kw_only=True)
class Normal(Annotator):
    """Which way surfaces face, n ∝ (−∂z/∂x, −∂z/∂y, 1/k) as a colour (n + 1) / 2, of the depth z in [0, 1]."""

    name = "normal"
    mirrors = False

    model: str | None = None
    """As of depth, from which the normals follow."""
    relief: float = 64.0
    """How much deeper the picture is than wide, k, in widths of a pixel."""

    def check(self) -> None:
        """See :class:`Annotator`."""
        Depth(model=self.model).check()

    def annotate(self, picture: Image.Image) -> Pixels:
        """See :class:`Annotator`; x points to the right, y up, z at the viewer."""
        z = Depth(model=self.model).annotate(picture).astype(np.float32) / 255
        z = cv2.GaussianBlur(z, (0, 0), max(0.5, min(picture.size) / 256))
        down, right = np.gradient(z)
        normals = np.stack([-right, down, np.full_like(z, 1 / self.relief)], axis=2)
        normals /= np.linalg.norm(normals, axis=2, keepdims=True)
        return np.rint((normals + 1) * 127.5).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Landmarks(Annotator):
    """Points of a face or a body that mediapipe finds, joined by lines; black where it finds none."""

    mirrors = False

    model: str = ""
    """Path of mediapipe's model, a .task file."""

    def check(self) -> None:
        """See :class:`Annotator`."""
        models.landmarker(self.name, self.model)

    def annotate(self, picture: Image.Image) -> Pixels:
        """See :class:`Annotator`."""
        canvas = np.zeros((picture.height, picture.width, 3), np.uint8)
        points = self.points(picture)
        if points is not None:
            width = max(1, min(picture.size) // 256)
            hues = np.linspace(0, 179, len(points), endpoint=False)
            hsv = np.stack([hues, np.full_like(hues, 255), np.full_like(hues, 255)], axis=1).astype(np.uint8)
            colours = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0].tolist()
            spots = np.rint(points).astype(int).tolist()
            for one, other in models.landmarker(self.name, self.model).connections:
                cv2.line(canvas, spots[one], spots[other], colours[one], width, cv2.LINE_AA)
            for spot, colour in zip(spots, colours, strict=True):
                cv2.circle(canvas, spot, width, colour, -1, cv2.LINE_AA)
        return canvas

    def points(self, picture: Image.Image) -> npt.NDArray[np.float32] | None:
        """Return the points (n, 2) in pixels of the first face or body, None where there is none."""
        return models.landmarker(self.name, self.model)(Image.fromarray(rgb(picture)))


@dataclass(frozen=True, kw_only=True)
class Face(Landmarks):
    """The landmarks of a face."""

    name = "face"


@dataclass(frozen=True, kw_only=True)
class Pose(Landmarks):
    """The joints of a body."""

    name = "pose"


ANNOTATORS: dict[str, type[Annotator]] = {
    kind.name: kind for kind in (Given, Canny, Scribble, SoftEdge, Colour, Segmentation, Depth, Normal, Face, Pose)
}


def make_annotator(name: str, settings: Mapping[str, Any] | None = None) -> Annotator:
    """Make an annotator by its name.

    Raises:
        ConfigError: there is none of this name, or it has no such setting.
    """
    if name not in ANNOTATORS:
        raise ConfigError(f"There is no annotator {name!r}; known are {', '.join(ANNOTATORS)}.")
    kind = ANNOTATORS[name]
    known = [field.name for field in fields(kind)]
    for key in (settings or {}).keys() - set(known):
        raise ConfigError(f"The annotator {name!r} has no setting {key!r}; known are {', '.join(known) or 'none'}.")
    return kind(**(settings or {}))


def settings_of(annotator: Annotator) -> dict[str, Any]:
    """Return the settings that :func:`make_annotator` takes."""
    return asdict(annotator)


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


def palette() -> Pixels:
    """Colours of 256 labels, label 0 black: those of PASCAL VOC, whose bits are spread over the channels."""
    labels = np.arange(256)
    channels = [sum(((labels >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)
