"""Decoding of image files: upright colors in sRGB with 8 bits a channel, and transparency.

Formats differ in the meaning of a number. Here, 16-bit values are scaled, not clipped; embedded ICC profiles (CMYK from
print, Display P3 from phones) are converted to sRGB; a transparent color becomes an alpha channel.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, ImageColor, ImageOps

from hra_diffusion.errors import ConfigError, ImageError

Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF")
"""Allowed decoders: no document formats, no PostScript."""

MAX_PIXELS = 120_000_000
"""Larger images are refused before they are decoded (360 MB in RGB)."""

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}  # ISO/IEC 23008-12, annex B

# A PNG's transparent color has the depth of the file, Pillow's pixels have 8 bits.
_COLOR_KEYS: dict[str, Callable[[Any], Any]] = {
    "L;2": lambda key: key * 85,
    "L;4": lambda key: key * 17,
    "RGB;16B": lambda key: tuple(k >> 8 for k in key),
}

_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


@dataclass(frozen=True)
class Layers:
    """A decoded image."""

    colors: Image.Image
    """Mode RGB."""
    alpha: Image.Image | None
    """Mode L, 255 for opaque; None without transparency."""
    animated: bool
    """Whether the file holds more images; this is the first."""

    def over(self, background: Color) -> Image.Image:
        """Compose on a background, in RGB."""
        if self.alpha is None:
            return self.colors
        return Image.composite(self.colors, Image.new("RGB", self.colors.size, background), self.alpha)

    def whole(self) -> Image.Image:
        """Return the image in RGB, or in RGBA if it has transparency."""
        image = self.colors.copy()
        if self.alpha is not None:
            image.putalpha(self.alpha)
        return image


def read_image(path: Path, background: Color = WHITE, shortest_side: int | None = None) -> Image.Image:
    """Decode an image in RGB, over a background; errors as in :func:`read_layers`.

    Args:
        path: the file.
        background: the color below transparent pixels.
        shortest_side: scale larger images down to this shortest side in pixels; JPEG is decoded at a smaller scale.
    """
    image = read_layers(path, shortest_side).over(background)
    if shortest_side and (scale := shortest_side / min(image.size)) < 1:
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    return image


def read_layers(path: Path, shortest_side: int | None = None) -> Layers:
    """Decode an image.

    Args:
        path: the file.
        shortest_side: the shortest side that is needed, in pixels; decoders that can scale down use it.

    Raises:
        ImageError: the file is missing, unreadable, no image of the allowed formats, damaged, too large, or needs an
            optional package.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a file is decoded, or refused with an error
        with _open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"{path} has {image.width}×{image.height} pixels, more than {MAX_PIXELS:,}: scale it down."
                )
            try:
                if shortest_side and (scale := shortest_side / min(image.size)) < 1:
                    image.draft(None, (ceil(image.width * scale), ceil(image.height * scale)))
                return _decode(image)
            except ImageError as error:
                raise ImageError(f"{path} {error}") from None
            except MemoryError as error:
                raise ImageError(f"{path} needs more memory than there is: scale it down.") from error
            except Exception as error:  # for damaged files, decoders raise anything from SyntaxError to struct.error
                reason = " ".join(str(error).split())
                raise ImageError(f"{path} is damaged ({reason}): remove it or save it anew.") from error


def check_same_shape(what: str, size: tuple[int, int], image: tuple[int, int]) -> None:
    """Check that a mask or condition has the aspect ratio of its image, to 2 %.

    Args:
        what: its name in the message.
        size: its width and height.
        image: the image's width and height.

    Raises:
        ImageError: the aspect ratios differ.
    """
    (width, height), (image_width, image_height) = size, image
    if abs(width * image_height - height * image_width) > max(width * image_height, height * image_width) / 50:
        raise ImageError(
            f"The {what} has {width}×{height} pixels and its image {image_width}×{image_height}: give both one shape."
        )


def parse_color(name: str) -> Color:
    """Return red, green and blue of a color's name or "#rrggbb".

    Raises:
        ConfigError: the color is unknown.
    """
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise ConfigError(f'--background_color is {name!r}: give a name such as white, or "#rrggbb".') from error


def _open(path: Path) -> Image.Image:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ImageError(f"{path} cannot be read: it is a pipe, socket or device, not a file.")
    try:
        return Image.open(path, formats=("HEIF",) if _is_heic(path) else FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} has too many pixels ({error}): scale it down.") from error
    except ImportError as error:
        raise ImageError(
            f"{path} is a HEIC file, which needs pillow-heif: pip install 'hra-diffusion[heic]', or save it as JPEG."
        ) from error
    except FileNotFoundError as error:
        raise ImageError(f"There is no image {path}: check the path.") from error
    except Exception as error:  # OSError mostly; ValueError for a PNG with a decompression bomb in its texts
        if isinstance(error, OSError) and error.strerror:  # of the file system, not of the decoder
            raise ImageError(f"{path} cannot be read: {error.strerror}.") from error
        raise ImageError(f"{path} is no image that can be read: remove it or save it as JPEG or PNG.") from error


def _is_heic(path: Path) -> bool:
    """Whether the file type box has a brand of HEIC; registers the decoder if so."""
    with path.open("rb") as file:
        start = file.read(64)
    if start[4:8] != b"ftyp" or not _HEIC_BRANDS & {start[at : at + 4] for at in range(8, len(start), 4)}:
        return False
    from pillow_heif import register_heif_opener  # optional: the extra "heic"

    register_heif_opener()
    return True


def _decode(image: Image.Image) -> Layers:
    animated = image.format != "MPO" and getattr(
        image, "is_animated", False
    )  # a phone's MPO has a thumbnail or a second view
    stored, inverted = _stored_as(image), _white_is_zero(image)
    image.load()
    with suppress(Exception):  # unreadable EXIF is ignored
        image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    if image.mode in ("I", "F"):
        raise ImageError("has values of 32 bits, whose white is unknown: save it with 8 or 16 bits a channel.")
    if image.mode.startswith("I;16"):
        image, alpha = _from_16_bits(image, 4095 if stored == "I;12" else 65535, inverted)
    else:
        image, alpha = _without_alpha(image, stored)
    return Layers(_to_srgb(image, profile), alpha, animated)


def _stored_as(image: Any) -> str:
    """Return the file's pixel format in Pillow's notation ("RGB;16B"), or an empty string."""
    arguments = image.tile[0][3] if image.tile else ""
    return arguments if isinstance(arguments, str) else str(next(iter(arguments or ()), ""))


def _white_is_zero(image: Any) -> bool:
    """Whether white is 0 in a TIFF; Pillow converts such files of up to 8 bits only."""
    return image.format == "TIFF" and image.tag_v2.get(262) == 0  # PhotometricInterpretation


def _from_16_bits(image: Image.Image, white: int, inverted: bool) -> tuple[Image.Image, Image.Image | None]:
    """Scale 16-bit gray, which Pillow would clip to white, to 8 bits."""
    values, levels = np.asarray(image), np.arange(2**16)
    gray = np.rint(np.clip(white - levels if inverted else levels, 0, white) * (255 / white)).astype(np.uint8)
    key = image.info.get("transparency")
    alpha = None if key is None else _look_up(np.where(levels == key, 0, 255).astype(np.uint8), values)
    return _look_up(gray, values), alpha


def _look_up(table: npt.NDArray[np.uint8], values: npt.NDArray[Any]) -> Image.Image:
    """Return the entries of a table at 16-bit values as an image; row by row, since NumPy widens indices to 64 bits."""
    result = np.empty(values.shape, np.uint8)
    for row, line in zip(result, values, strict=True):
        row[:] = table[line]
    return Image.fromarray(result)


def _without_alpha(image: Image.Image, stored: str) -> tuple[Image.Image, Image.Image | None]:
    """Split an image of up to 8 bits into colors (gray, RGB or CMYK) and alpha."""
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode == "P" else image, None
    if stored in _COLOR_KEYS:
        image.info["transparency"] = _COLOR_KEYS[stored](image.info["transparency"])
    is_gray = Image.getmodebase(image.mode) == "L"
    layered = image.convert("LA" if is_gray else "RGBA")
    return layered.convert("L" if is_gray else "RGB"), layered.getchannel("A")


def _to_srgb(colors: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert colors by the embedded profile; a damaged profile, or one for other colors, is ignored."""
    if profile:
        with suppress(ImageCms.PyCMSError, OSError):
            embedded = ImageCms.getOpenProfile(BytesIO(profile))
            details: Any = embedded.profile
            mode = _PROFILE_MODES.get(details.xcolor_space.strip())
            if mode == colors.mode or (mode == "RGB" and colors.mode in ("1", "L")):
                srgb = ImageCms.createProfile("sRGB")
                converted: Any = ImageCms.profileToProfile(colors.convert(mode), embedded, srgb, outputMode="RGB")
                return converted
    return colors.convert("RGB")
