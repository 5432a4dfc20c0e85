"""What whoever asked for pictures is told while they are drawn."""

from dataclasses import dataclass

from PIL import Image

from hra_diffusion.studio.requests import DrawRequest


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

    picture: int
    """Counted from 0."""
    pictures: int
    step: int
    """Counted from 1."""
    steps: int
    seconds_left: float
    """Of the whole request, if it goes on as it went."""
    preview: bytes
    """A JPEG file."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture is done."""

    request: DrawRequest
    """For this picture alone."""
    image: Image.Image


Event = Reading | Waiting | Progress | Drawn
