"""Annotators (preprocessors): image → condition, the same code for training and for generating images.

An annotator maps an RGB image to an RGB image of the same size with the information to keep: edges, depth, regions,
landmarks.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hra_diffusion.control.annotators.annotator import Annotator, Given
from hra_diffusion.control.annotators.depth import Depth, Normal
from hra_diffusion.control.annotators.edges import Canny, Scribble, SoftEdge
from hra_diffusion.control.annotators.landmarks import Face, Landmarks, Pose
from hra_diffusion.control.annotators.regions import Color, Segmentation
from hra_diffusion.errors import ConfigError
from hra_diffusion.text import nearest

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
]


ANNOTATORS: dict[str, type[Annotator]] = {
    kind.name: kind for kind in (Given, Canny, Scribble, SoftEdge, Color, Segmentation, Depth, Normal, Face, Pose)
}


def make_annotator(name: str, settings: Mapping[str, Any] | None = None) -> Annotator:
    """Make an annotator by its name.

    Args:
        name: a key of :data:`ANNOTATORS`.
        settings: values of its fields by name, as `dataclasses.asdict` returns them.

    Raises:
        ConfigError: the name or a setting is unknown, or a value is out of its range.
    """
    if name not in ANNOTATORS:
        raise ConfigError(f"There is no annotator {name!r}{nearest(name, ANNOTATORS)}")
    settings = settings or {}
    if not isinstance(settings, Mapping):
        raise ConfigError(f"The annotator {name!r} has settings {settings!r}: give names with values.")
    known = [field.name for field in fields(ANNOTATORS[name])]
    for key in settings.keys() - set(known):
        raise ConfigError(f"The annotator {name!r} has no setting {key!r}{nearest(key, known) if known else '.'}")
    return ANNOTATORS[name](**settings)
