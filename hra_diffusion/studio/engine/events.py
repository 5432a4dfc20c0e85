"""What whoever asked for images is told while they are drawn."""

from dataclasses import dataclass

from PIL import Image

from hra_diffusion.studio.engine.requests import GenerateRequest


@dataclass(frozen=True)
class Reading:
    """The model is being read, once, before it draws for the first time."""


@dataclass(frozen=True)
class Waiting:
    """Others are served first."""

    before: int
    """How many."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A step is done."""

    image: int
    """Counted from 0."""
    images: int
    step: int
    """Counted from 1."""
    steps: int
    seconds_left: float
    """Of the whole request, if it goes on as it went."""
    preview: bytes
    """A JPEG file."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """An image is done."""

    request: GenerateRequest
    """For this image alone."""
    image: Image.Image


Event = Reading | Waiting | Progress | Drawn
