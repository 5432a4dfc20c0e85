"""The images of a training job: captions, crops and conditions, checked when they are uploaded."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from hra_diffusion.errors import ConfigError, HRAError, ImageError
from hra_diffusion.formats.images import check_same_shape
from hra_diffusion.studio.engine.uploads import MAX_FILES, read_upload
from hra_diffusion.text import shorten

CROPS = ("whole", "middle", "start", "end")
_NUMBERS = re.compile(r"\s*(\d{1,6})" + r"\s*,\s*(\d{1,6})" * 3 + r"\s*")


@dataclass(frozen=True, kw_only=True)
class TrainingImage:
    """An image with its caption and crop."""

    file: Path
    caption: str = ""
    """Description of the image; by default the instance prompt."""
    crop: str = "whole"
    """whole; middle, start or end for a square there; or "x, y, width, height" in pixels."""
    condition: Path | None = None
    """Condition of the image for a control, of the same shape; None lets the annotator make it."""


def read_cropped(source: TrainingImage) -> Image.Image:
    """Read and crop an image.

    Raises:
        ImageError: the image is unreadable, or the crop exceeds it.
    """
    image = read_upload(source.file)
    x, y, width, height = crop_box(source.file.name, source.crop, image.size)
    return image if (width, height) == image.size else image.crop((x, y, x + width, y + height))


def read_cropped_condition(source: TrainingImage, condition: Path) -> Image.Image:
    """Read the condition of an image with the image's crop.

    Raises:
        ImageError: a file is unreadable, the two differ in shape, or the crop exceeds the image.
    """
    size, image = read_upload(source.file).size, read_upload(condition, alpha=True)
    check_same_shape(f"condition {condition.name}", image.size, size)
    x, y, width, height = crop_box(source.file.name, source.crop, size)
    scale_x, scale_y = image.width / size[0], image.height / size[1]
    return image.crop(
        (round(x * scale_x), round(y * scale_y), round((x + width) * scale_x), round((y + height) * scale_y))
    )


def crop_box(name: str, crop: str, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return x, y, width and height of a crop in pixels.

    Args:
        name: the image's file name, for messages.
        crop: a crop as in `TrainingImage`; "" is whole.
        size: width and height of the image.

    Raises:
        ImageError: the crop is unknown, or exceeds the image.
    """
    crop, (width, height), side = crop.strip().lower() or "whole", size, min(size)
    corners = {
        "start": (0, 0),
        "middle": ((width - side) // 2, (height - side) // 2),
        "end": (width - side, height - side),
    }
    if crop == "whole":
        return 0, 0, width, height
    if crop in corners:
        return (*corners[crop], side, side)
    numbers = _NUMBERS.fullmatch(crop)
    if numbers is None:
        raise ImageError(f"{name}: the crop {crop[:40]!r} is none of {', '.join(CROPS)}, nor x, y, width, height.")
    x, y, w, h = map(int, numbers.groups())
    if not (w and h and x + w <= width and y + h <= height):
        raise ImageError(f"{name}: the crop {crop} exceeds the image of {width}×{height} pixels.")
    return x, y, w, h


def check_images(files: Sequence[Path]) -> list[tuple[Path, tuple[int, int] | None, str]]:
    """Check images for training.

    Returns:
        For every file its path, and its width and height in pixels, or None and the error.

    Raises:
        ConfigError: there are too many files.
    """
    if len(files) > MAX_FILES:
        raise ConfigError(f"Give at most {MAX_FILES} images, best four to eight; found {len(files)}.")
    checked: list[tuple[Path, tuple[int, int] | None, str]] = []
    for file in files:
        try:
            checked.append((file, read_upload(file).size, ""))
        except HRAError as error:
            checked.append((file, None, str(error)))
    return checked


def with_conditions(images: Sequence[TrainingImage], conditions: Sequence[Path]) -> list[TrainingImage]:
    """Return the images with their conditions, which have the images' names; all images need one.

    Raises:
        ConfigError: a condition has no image, or an image no condition, or a name is taken twice.
    """
    by_name: dict[str, Path] = {}
    for condition in conditions:
        if condition.stem in by_name:
            raise ConfigError(f"Two conditions are named {condition.stem[:80]!r}: keep one of them.")
        by_name[condition.stem] = condition
    names = [image.file.stem for image in images]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"Two images are named {twice[0][:80]!r}: rename one, so that each has a condition.")
    if others := [path.name for name, path in by_name.items() if name not in names]:
        raise ConfigError(f"Conditions have the names of no image: {shorten(others)}. Name them like their images.")
    if missing := [image.file.name for image in images if image.file.stem not in by_name]:
        raise ConfigError(f"Images have no condition: {shorten(missing)}. Add conditions of the same names.")
    return [replace(image, condition=by_name[image.file.stem]) for image in images]
