"""Events of a request, from the queue to the finished images."""

from dataclasses import dataclass

from PIL import Image

from hra_diffusion.studio.engine.generation.requests import GenerateRequest


@dataclass(frozen=True)
class Loading:
    """The model is being loaded, once, before its first image."""


@dataclass(frozen=True)
class Queued:
    """Other requests come first."""

    ahead: int
    """Number of requests ahead."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A denoising step is done."""

    image: int
    """Index of the image, from 0."""
    images: int
    step: int
    """Number of the step, from 1."""
    steps: int
    seconds_left: float
    """Estimate for the whole request."""
    preview: bytes
    """A JPEG file."""


@dataclass(frozen=True, kw_only=True)
class Generated:
    """An image is finished."""

    request: GenerateRequest
    """The request of this image alone."""
    image: Image.Image


Event = Loading | Queued | Progress | Generated
