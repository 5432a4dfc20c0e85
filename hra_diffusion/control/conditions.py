"""Images for a control: decoded from files, scaled to a size."""

from pathlib import Path

from PIL import Image, ImageOps

from hra_diffusion.control.annotators import Annotator, Depth, Given
from hra_diffusion.errors import ImageError
from hra_diffusion.formats.images import WHITE, Color, read_layers


def read_condition(path: Path, annotator: Annotator) -> Image.Image:
    """Decode a finished condition of an annotator's kind, in RGB; depth is stretched from black to white.

    Raises:
        ImageError: the file cannot be read, or is no condition of this kind.
    """
    condition = read_layers(path).over((0, 0, 0))
    return annotate(path, Depth(), condition) if isinstance(annotator, Depth) else condition


def annotate(path: Path, annotator: Annotator, image: Image.Image) -> Image.Image:
    """Return the condition of an image; errors name its file.

    Raises:
        ImageError: the image has no condition.
    """
    try:
        return annotator(image)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def read_control_image(path: Path, annotator: Annotator, background: Color = WHITE) -> Image.Image:
    """Decode an image for an annotator: RGB over a background, or RGBA for one that reads transparency.

    Where conditions are given, the image is a condition: see `read_condition`.

    Raises:
        ImageError: the file cannot be read.
    """
    if isinstance(annotator, Given):
        return read_condition(path, annotator)
    layers = read_layers(path)
    return layers.whole() if annotator.reads_transparency else layers.over(background)


def fit(image: Image.Image, size: tuple[int, int], labels: bool = False) -> Image.Image:
    """Scale an image to cover a size and crop it to the center; colors of labels are not mixed."""
    if image.size == size:
        return image
    image = image if image.mode in ("RGB", "RGBA", "L", "F", "I;16", "I") else image.convert("RGB")
    return ImageOps.fit(image, size, Image.Resampling.NEAREST if labels else Image.Resampling.LANCZOS)
