"""Pictures from disk to training tensors: decoded safely, upright, in RGB, covering a square.

Every file of a folder is decoded before training starts, so a damaged one is named then and not at step 300.
"""

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from hra_diffusion.errors import ImageError

logger = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF")
"""Decoders that may be tried: no document formats, no PostScript."""

MAX_PIXELS = 120_000_000
"""Larger pictures are refused before they are decoded (360 MB in RGB)."""

NOT_PICTURES = (".toml",)
"""Files that belong into a picture folder without being pictures."""


def read_picture(path: Path, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Decode a picture: first frame, upright by its EXIF orientation, RGB of 8 bits, transparency over ``background``.

    Raises:
        ImageError: the file is no picture of the known formats, damaged, or larger than ``MAX_PIXELS``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS decides
            image = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} has too many pixels ({error}): scale it down.") from error
    except OSError as error:
        raise ImageError(f"{path} is no picture that can be read: remove it or save it as JPEG or PNG.") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(
                f"{path} has {image.width}×{image.height} pixels, more than {MAX_PIXELS:,}: scale it down."
            )
        try:
            return _to_rgb(ImageOps.exif_transpose(image), background)
        except Exception as error:  # decoders of damaged files raise anything from SyntaxError to struct.error
            raise ImageError(f"{path} is damaged ({error}): remove it or save it anew.") from error


def read_pictures(paths: Iterable[Path], folder: Path) -> list[Image.Image]:
    """Decode files of a folder; those that are no pictures are named in one warning.

    Raises:
        ImageError: not one picture could be read.
    """
    pictures: list[Image.Image] = []
    refused: list[str] = []
    for path in paths:
        try:
            pictures.append(read_picture(path))
        except ImageError as error:
            refused.append(str(error))
    reasons = " ".join(refused)
    if not pictures:
        raise ImageError(
            f"The folder {folder} holds no pictures: put some there (JPEG, PNG, WebP, …). {reasons}".rstrip()
        )
    if refused:
        logger.warning("Left out %d of %d files. %s", len(refused), len(refused) + len(pictures), reasons)
    return pictures


def picture_files(folder: Path) -> list[Path]:
    """Files of a folder that should be pictures, in the order of their names; not hidden ones, not sub-folders.

    Raises:
        ImageError: there is no such folder.
    """
    if not folder.is_dir():
        raise ImageError(f"There is no picture folder {folder}: check the path.")
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and not path.name.startswith(".") and path.suffix.lower() not in NOT_PICTURES
    )


def square_crops(image: Image.Image, resolution: int, *, center_crop: bool) -> list[Image.Image]:
    """Scale a picture to cover a square of side ``resolution``; return its middle, or the middle and both ends."""
    scale = resolution / min(image.size)
    width, height = (max(resolution, round(side * scale)) for side in image.size)
    scaled = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    room = (width - resolution, height - resolution)
    positions = (0.5,) if center_crop or room == (0, 0) else (0.5, 0.0, 1.0)
    corners = [tuple(round(position * side) for side in room) for position in positions]
    return [scaled.crop((left, top, left + resolution, top + resolution)) for left, top in corners]


def to_tensor(image: Image.Image) -> Tensor:
    """Turn an RGB picture into a float32 tensor of shape (3, height, width) in [−1, 1], as autoencoders take it."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def _to_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip to white
        image = Image.fromarray((np.asarray(image, dtype=np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (*background, 255)), layer).convert("RGB")
    return image.convert("RGB")
