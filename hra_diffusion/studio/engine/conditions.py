"""Images → conditions: what a control of the library follows, made as it was when the control was trained.

Annotators that need a model of their own stay out: its path would come from a file that anybody may have sent.
"""

from typing import Any

from PIL import Image, ImageOps

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.library import Entry

OWN, GIVEN = "own", "given"
ANNOTATORS = {
    OWN: "as the control was trained",
    GIVEN: "none: it is one already",
    "canny": "thin edges",
    "scribble": "thick strokes",
    "soft_edge": "soft edges",
    "color": "blocks of color",
    "segmentation": "object and background, by its transparency",
    "depth": "depth, of a gray map",
}
"""What may be made of an image, in words."""
_STROKES = ("canny", "scribble", "soft_edge")


def annotated(image: Image.Image, entry: Entry, annotator: str, size: tuple[int, int]) -> Image.Image:
    """Make the condition of an image.

    Args:
        image: RGB, or RGBA where its transparency counts.
        entry: the control; its annotator's settings count wherever its annotator is asked for.
        annotator: a key of `ANNOTATORS`.
        size: width and height that will be drawn.

    Raises:
        ConfigError: there is no such annotator here, or the control's own cannot work here.
        ImageError: the image has not what it needs.
    """
    if not isinstance(annotator, str) or annotator not in ANNOTATORS:
        raise ConfigError(f"There is no annotator {str(annotator)[:80]!r}; known are: {', '.join(ANNOTATORS)}.")
    from hra_diffusion.control import fit, make_annotator  # imports diffusers, which the page does without

    own, settings = entry.annotator or GIVEN, entry.annotator_settings
    name = own if annotator == OWN else annotator
    if name not in ANNOTATORS or (name == own and settings.get("model")):
        raise ConfigError(
            f"{entry.name!r} follows {own}, which is found by a model that the studio does not have: give an image "
            "that is annotated already, and say so."
        )
    labels = name == GIVEN and make_annotator(own, settings).labels
    return make_annotator(name, settings if name == own else None)(fit(image, size, labels))


def of_drawing(drawing: Image.Image, entries: list[Entry]) -> Image.Image:
    """Turn dark strokes on paper into what controls of edges follow, light on dark; other drawings stay as they are."""
    edges = all(entry.annotator in _STROKES for entry in entries if entry.annotator)
    return ImageOps.invert(drawing) if edges else drawing


def control_among(entries: list[Entry]) -> Entry | None:
    """Return the control among adapters.

    Raises:
        ConfigError: there are several.
    """
    controls = [entry for entry in entries if entry.annotator]
    if len(controls) > 1:
        names: Any = ", ".join(entry.name for entry in controls)
        raise ConfigError(f"{names} are controls, of which one acts at a time: choose one of them.")
    return controls[0] if controls else None
