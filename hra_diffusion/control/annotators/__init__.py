"""Image → condition: the same code before training and when images are drawn.

An annotator maps an RGB image to an RGB image of the same size that holds what is to be kept of it: its edges, its
depth, who stands where.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from hra_diffusion.control.annotators.annotator import Annotator, Given
from hra_diffusion.control.annotators.edges import Canny, Scribble, SoftEdge
from hra_diffusion.control.annotators.landmarks import Face, Landmarks, Pose
from hra_diffusion.control.annotators.regions import Color, Segmentation
from hra_diffusion.control.annotators.relief import Depth, Normal
from hra_diffusion.errors import ConfigError

__all__ = [
    "ANNOTATORS",
    "Annotator",
    "Canny",
    "Color",
    "Depth",
    "Face",
    "Given",
    "Landmarks",
    "Normal",
    "Pose",
    "Scribble",
    "Segmentation",
    "SoftEdge",
    "make_annotator",
    "settings_of",
]


ANNOTATORS: dict[str, type[Annotator]] = {
    kind.name: kind for kind in (Given, Canny, Scribble, SoftEdge, Color, Segmentation, Depth, Normal, Face, Pose)
}


def make_annotator(name: str, settings: Mapping[str, Any] | None = None) -> Annotator:
    """Make an annotator by its name.

    Raises:
        ConfigError: there is none of this name, or it has no such setting.
    """
    if name not in ANNOTATORS:
        raise ConfigError(f"There is no annotator {name!r}; known are {', '.join(ANNOTATORS)}.")
    if not isinstance(settings or {}, Mapping):
        raise ConfigError(f"The annotator {name!r} has settings {settings!r}: give a value for each by its name.")
    kind = ANNOTATORS[name]
    known = [field.name for field in fields(kind)]
    for key in (settings or {}).keys() - set(known):
        raise ConfigError(f"The annotator {name!r} has no setting {key!r}; known are {', '.join(known) or 'none'}.")
    return kind(**(settings or {}))


def settings_of(annotator: Annotator) -> dict[str, Any]:
    """Return the settings that :func:`make_annotator` takes."""
    return asdict(annotator)
