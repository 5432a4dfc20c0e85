"""Images from outside: their bytes and pixels are counted, then they are decoded, before anything uses them."""

import hashlib
from pathlib import Path

from PIL import Image

from hra_diffusion.errors import ImageError
from hra_diffusion.formats.files import write_file
from hra_diffusion.formats.images import WHITE, read_layers

MAX_BYTES = 30_000_000
MAX_PIXELS = 50_000_000
MAX_FILES = 200
_DIGEST = 32


def read_upload(path: Path, *, transparent: bool = False) -> Image.Image:
    """Decode an uploaded image, upright and in RGB; RGBA where it has transparency and that was asked for.

    Raises:
        ImageError: it is not there, too large or no image; the message has the file's name, not its folder.
    """
    try:
        size = path.stat().st_size
    except (OSError, ValueError):
        raise ImageError(f"{path.name[:80]!r} is no file that was uploaded: choose an image.") from None
    if size > MAX_BYTES:
        raise ImageError(f"{path.name} has {size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}: save it smaller.")
    try:
        with Image.open(path) as header:
            width, height = header.size
    except Exception:  # not Pillow's to say why: read_layers names the reason
        width, height = 0, 0
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{path.name} has {width}×{height} pixels, more than {MAX_PIXELS / 1e6:.0f} million: scale it down."
        )
    try:
        layers = read_layers(path)
    except ImageError as error:
        raise ImageError(str(error).replace(str(path), path.name)) from None
    if not (transparent and layers.alpha):
        return layers.over(WHITE)
    layers.colors.putalpha(layers.alpha)
    return layers.colors


class Uploads:
    """Images that were drawn from or followed, kept by what they look like, so that a request can name them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(self, image: Image.Image) -> str:
        """Keep an image; returns its digest."""
        digest = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=_DIGEST // 2).hexdigest()
        path = self.folder / f"{digest}.png"
        if not path.exists():
            write_file(path, image.save)
        return digest

    def path(self, digest: str) -> Path:
        """Find an image that was kept.

        Raises:
            ImageError: there is none; a digest is no path.
        """
        known = len(digest) == _DIGEST and set(digest) <= set("0123456789abcdef")
        path = self.folder / f"{digest}.png"
        if not known or not path.is_file():
            raise ImageError("The image to start from, or to follow, is not here any more: choose it again.")
        return path

    def read(self, digest: str) -> Image.Image:
        """Read an image that was kept; errors as in `path`."""
        with Image.open(self.path(digest)) as image:
            return image.copy()
