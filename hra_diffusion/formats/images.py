"""An image file → colors in sRGB with 8 bits a channel, upright, and its transparency; or an error with its name.

Formats disagree on what a number means. Here: 16-bit values are scaled, not clipped; embedded ICC profiles (CMYK from
print, Display P3 from phones) are converted to sRGB; a color that stands for "transparent" becomes an alpha channel.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps

from hra_diffusion.errors import ConfigError, ImageError

Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF")
"""Decoders that may be tried: no document formats, no PostScript."""

MAX_PIXELS = 120_000_000
"""Larger images are refused before they are decoded (360 MB in RGB)."""

_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}  # ISO/IEC 23008-12, annex B

# PNG gives a transparent color with the file's depth, Pillow the pixels with 8 bits.
_COLOR_KEYS: dict[str, Callable[[Any], Any]] = {
    "L;2": lambda key: key * 85,
    "L;4": lambda key: key * 17,
    "RGB;16B": lambda key: tuple(k >> 8 for k in key),
}

_MODE_OF_PROFILE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


@dataclass(frozen=True)
class Layers:
    """A decoded image."""

    colors: Image.Image
    """Mode RGB."""
    alpha: Image.Image | None
    """Mode L, 255 where the colors are opaque; None where there is no transparency."""
    animated: bool
    """Whether the file holds more images than this, its first."""

    def over(self, background: Color) -> Image.Image:
        """Compose on a background, in RGB."""
        if self.alpha is None:
            return self.colors
        return Image.composite(self.colors, Image.new("RGB", self.colors.size, background), self.alpha)

    def whole(self) -> Image.Image:
        """Return RGB, or RGBA where there is transparency."""
        image = self.colors.copy()
        if self.alpha is not None:
            image.putalpha(self.alpha)
        return image


def read_image(path: Path, background: Color = WHITE) -> Image.Image:
    """Decode an image in RGB, transparency over ``background``; errors as in :func:`read_layers`."""
    return read_layers(path).over(background)


def read_layers(path: Path) -> Layers:
    """Decode an image.

    Raises:
        ImageError: the file is not there, cannot be read, is no image of the known formats, damaged, too large, or in
            need of an extra package.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a matter of taste for Pillow; here a file is good, or refused with an error
        with _open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(
                    f"{path} has {image.width}×{image.height} pixels, more than {MAX_PIXELS:,}: scale it down."
                )
            try:
                return _decode(image)
            except ImageError as error:
                raise ImageError(f"{path} {error}") from None
            except Exception as error:  # decoders of damaged files raise anything from SyntaxError to struct.error
                reason = " ".join(str(error).split())
                raise ImageError(f"{path} is damaged ({reason}): remove it or save it anew.") from error


def check_same_shape(what: str, size: tuple[int, int], image: tuple[int, int]) -> None:
    """Make sure that something has the shape, width to height, of the image that it is of, to 2 %.

    Raises:
        ImageError: it has another.
    """
    (width, height), (own_width, own_height) = size, image
    if abs(width * own_height - height * own_width) > max(width * own_height, height * own_width) / 50:
        raise ImageError(
            f"The {what} has {width}×{height} pixels and its image {own_width}×{own_height}: give both one shape."
        )


def parse_color(name: str) -> Color:
    """Turn a color's name, or "#rrggbb", into red, green and blue.

    Raises:
        ConfigError: it is not known.
    """
    try:
        return ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise ConfigError(f'--background_color is {name!r}: give a name such as white, or "#rrggbb".') from error


def _open(path: Path) -> Image.Image:
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
    except Exception as error:  # OSError mostly; ValueError for a PNG whose texts explode
        if isinstance(error, OSError) and error.strerror:  # the file's fault, not the image's
            raise ImageError(f"{path} cannot be read: {error.strerror}.") from error
        raise ImageError(f"{path} is no image that can be read: remove it or save it as JPEG or PNG.") from error


def _is_heic(path: Path) -> bool:
    """Look for HEIC's brands in the file type box, and have its decoder ready when they are there."""
    with path.open("rb") as file:
        start = file.read(64)
    if start[4:8] != b"ftyp" or not _HEIC_BRANDS & {start[at : at + 4] for at in range(8, len(start), 4)}:
        return False
    from pillow_heif import register_heif_opener  # optional: the extra "heic"

    register_heif_opener()
    return True


def _decode(image: Image.Image) -> Layers:
    animated = image.format != "MPO" and getattr(image, "is_animated", False)  # a phone's MPO has a thumbnail or a twin
    stored, inverted = _stored_as(image), _white_is_zero(image)
    image.load()
    with suppress(Exception):  # EXIF that cannot be read turns nothing
        image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    if image.mode in ("I", "F"):
        raise ImageError("has numbers of 32 bits, whose white is not known: save it with 8 or 16 bits a channel.")
    if image.mode.startswith("I;16"):
        image, alpha = _from_16_bits(image, 4095 if stored == "I;12" else 65535, inverted)
    else:
        image, alpha = _without_alpha(image, stored)
    return Layers(_to_srgb(image, profile), alpha, animated)


def _stored_as(image: Any) -> str:
    """How the file stores a pixel, in Pillow's words ("RGB;16B"); empty where Pillow does not say."""
    arguments = image.tile[0][3] if image.tile else ""
    return arguments if isinstance(arguments, str) else str(next(iter(arguments or ()), ""))


def _white_is_zero(image: Any) -> bool:
    """Whether a TIFF counts from white to black; Pillow minds it up to 8 bits only."""
    return image.format == "TIFF" and image.tag_v2.get(262) == 0  # PhotometricInterpretation


def _from_16_bits(image: Image.Image, white: int, inverted: bool) -> tuple[Image.Image, Image.Image | None]:
    """Scale 16-bit gray, which Pillow would clip to white, to 8 bits."""
    values = np.asarray(image).astype(np.float64)
    gray = Image.fromarray(np.rint((white - values if inverted else values) * (255 / white)).astype(np.uint8))
    key = image.info.get("transparency")
    return gray, None if key is None else Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))


def _without_alpha(image: Image.Image, stored: str) -> tuple[Image.Image, Image.Image | None]:
    """Split an image of up to 8 bits into its colors, as gray, RGB or CMYK, and its alpha."""
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode == "P" else image, None
    if stored in _COLOR_KEYS:
        image.info["transparency"] = _COLOR_KEYS[stored](image.info["transparency"])
    is_gray = Image.getmodebase(image.mode) == "L"
    layered = image.convert("LA" if is_gray else "RGBA")
    return layered.convert("L" if is_gray else "RGB"), layered.getchannel("A")


def _to_srgb(colors: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert by the embedded profile; one that is damaged, or for another kind of colors, is passed over."""
    if profile:
        with suppress(ImageCms.PyCMSError, OSError):
            embedded = ImageCms.getOpenProfile(BytesIO(profile))
            about: Any = embedded.profile
            mode = _MODE_OF_PROFILE.get(about.xcolor_space.strip())
            if mode == colors.mode or (mode == "RGB" and colors.mode in ("1", "L")):
                srgb = ImageCms.createProfile("sRGB")
                converted: Any = ImageCms.profileToProfile(colors.convert(mode), embedded, srgb, outputMode="RGB")
                return converted
    return colors.convert("RGB")
