"""A file → what a control follows: a condition that is there already, or an image as an annotator takes it."""

from pathlib import Path

from PIL import Image

from hra_diffusion.control.annotators import Annotator, Depth
from hra_diffusion.errors import ImageError
from hra_diffusion.formats.images import WHITE, Color, read_layers


def read_condition(path: Path, annotator: Annotator) -> Image.Image:
    """Decode a condition that is there already, one of the annotator's kind: RGB; depth from black to white.

    Raises:
        ImageError: it cannot be read, or is none.
    """
    given = read_layers(path).over((0, 0, 0))
    return annotate(path, Depth(), given) if isinstance(annotator, Depth) else given


def annotate(path: Path, annotator: Annotator, image: Image.Image) -> Image.Image:
    """Return the condition of an image.

    Raises:
        ImageError: it has none; the message names the file that it is of.
    """
    try:
        return annotator(image)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def read_image_for(path: Path, annotator: Annotator, background: Color = WHITE) -> Image.Image:
    """Decode an image as an annotator takes it: RGB over a background, or RGBA where its transparency counts.

    Raises:
        ImageError: it cannot be read.
    """
    layers = read_layers(path)
    return layers.whole() if annotator.reads_transparency else layers.over(background)
