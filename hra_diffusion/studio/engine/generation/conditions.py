"""Images → conditions of a control in the library, annotated as during its training.

Annotators with a model of their own are excluded: the model's path would come from a file of unknown origin.
"""

from PIL import Image, ImageOps

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.adapters.entry import Entry

AS_TRAINED, NO_ANNOTATOR = "own", "given"
ANNOTATORS = {
    AS_TRAINED: "as the control was trained",
    NO_ANNOTATOR: "none: the image is a condition already",
    "canny": "thin edges",
    "scribble": "thick strokes",
    "soft_edge": "soft edges",
    "color": "blocks of color",
    "segmentation": "object and background, by the image's transparency",
    "depth": "depth, from a gray depth map",
}
"""Annotators of the studio, with a label for each."""
_STROKES = ("canny", "scribble", "soft_edge")


def make_condition(image: Image.Image, entry: Entry, annotator: str, size: tuple[int, int]) -> Image.Image:
    """Make the condition of an image.

    Args:
        image: RGB, or RGBA for annotators that read transparency.
        entry: the control; its annotator settings apply wherever its annotator is chosen.
        annotator: a key of `ANNOTATORS`.
        size: width and height of the generated image, in pixels.

    Raises:
        ConfigError: the annotator is unknown, or the control's annotator needs a model.
        ImageError: the image does not suit the annotator.
    """
    if not isinstance(annotator, str) or annotator not in ANNOTATORS:
        raise ConfigError(f"There is no annotator {str(annotator)[:80]!r}; known are: {', '.join(ANNOTATORS)}.")
    from hra_diffusion.control import fit, make_annotator  # imports diffusers, which the page does without

    trained, settings = entry.annotator or NO_ANNOTATOR, entry.annotator_settings
    name = trained if annotator == AS_TRAINED else annotator
    if name not in ANNOTATORS or (name == trained and settings.get("model")):
        raise ConfigError(
            f"The annotator of {entry.name!r}, {trained}, needs a model that the studio does not have: give an image "
            f"that is annotated already, and choose the annotator “{ANNOTATORS[NO_ANNOTATOR]}”."
        )
    labels = name == NO_ANNOTATOR and make_annotator(trained, settings).labels
    return make_annotator(name, settings if name == trained else None)(fit(image, size, labels))


def sketch_condition(sketch: Image.Image, entries: list[Entry]) -> Image.Image:
    """Invert a sketch for edge controls (light strokes on dark); return it unchanged for other controls."""
    edges = all(entry.annotator in _STROKES for entry in entries if entry.annotator)
    return ImageOps.invert(sketch) if edges else sketch


def has_strokes(sketch: Image.Image) -> bool:
    """Whether a sketch has a stroke: more than one color."""
    return any(low != high for low, high in sketch.convert("RGB").getextrema())  # pyright: ignore[reportGeneralTypeIssues]


def find_control(entries: list[Entry]) -> Entry | None:
    """Return the control among adapters, or None.

    Raises:
        ConfigError: there are several controls.
    """
    controls = [entry for entry in entries if entry.annotator]
    if len(controls) > 1:
        names = ", ".join(entry.name for entry in controls)
        raise ConfigError(f"{names} are controls, and only one can be active at a time: choose one of them.")
    return controls[0] if controls else None
