"""Uploaded images: bytes and pixels are limited before an image is decoded."""

import hashlib
import threading
from pathlib import Path

from PIL import Image

from hra_diffusion.errors import ImageError
from hra_diffusion.formats.files import write_file
from hra_diffusion.formats.images import WHITE, read_layers
from hra_diffusion.formats.reading import reading

MAX_BYTES = 30_000_000
MAX_PIXELS = 50_000_000
MAX_FILES = 200
_DIGEST = 32
DECODING = threading.RLock()
"""Held while an upload is decoded and used, so that requests of many clients hold one decoded image at a time."""


def read_upload(path: Path, *, alpha: bool = False) -> Image.Image:
    """Decode an uploaded image, upright and in RGB; with ``alpha``, a transparent image in RGBA.

    Raises:
        ImageError: the file is missing, too large or no image; the message has its name without the folder.
    """
    with DECODING:
        return _decode(path, alpha)


def _decode(path: Path, alpha: bool) -> Image.Image:
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        raise ImageError(f"{path.name[:80]!r} is no uploaded file: choose an image.") from None
    if size > MAX_BYTES:
        raise ImageError(f"{path.name} has {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}: save a smaller file.")
    try:
        with Image.open(path) as header:
            width, height = header.size
    except Exception:  # read_layers below names the reason
        width, height = 0, 0
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{path.name} has {width}×{height} pixels, more than {MAX_PIXELS / 1e6:.0f} million: scale it down."
        )
    try:
        layers = read_layers(path)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), path.name)) from None
    if not (alpha and layers.alpha):
        return layers.over(WHITE)
    layers.colors.putalpha(layers.alpha)
    return layers.colors


class Uploads:
    """Initial images and conditions, stored by the digest of their pixels for use in requests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, image: Image.Image) -> str:
        """Save an image and return its digest."""
        digest = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=_DIGEST // 2).hexdigest()
        path = self.folder / f"{digest}.png"
        if not path.exists():
            write_file(path, image.save)
        return digest

    def path(self, digest: str) -> Path:
        """Return the file of a saved image.

        Raises:
            ImageError: no image has this digest, or it is malformed.
        """
        valid = len(digest) == _DIGEST and set(digest) <= set("0123456789abcdef")
        path = self.folder / f"{digest}.png"
        if not valid or not path.is_file():
            raise ImageError(
                "The start image, its mask or the control image is not in the studio now: choose it again."
            )
        return path

    def open(self, digest: str) -> Image.Image:
        """Decode a saved image; errors as in `path`, or the file is damaged."""
        path = self.path(digest)
        with reading(path, ImageError), Image.open(path) as image:
            return image.copy()
