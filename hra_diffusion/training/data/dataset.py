"""A folder of images: which files belong to it, and what is wrong with them.

Every file is decoded before training starts, so a damaged one is named then and not at step 300. What is kept of it is
where it lies and what it is like; pixels are decoded again when they are needed.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import imagehash
from PIL import Image

from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.formats.images import WHITE, Color, read_image, read_layers
from hra_diffusion.training.data import captions

logger = logging.getLogger(__name__)

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif")
"""By these, images are told from other files where none is opened."""

HELD_OUT = "held_out"
"""Sub-folder with images that are never trained on, to measure with."""

SAME = 12
"""Perceptual hashes of 256 bits that differ in no more are of one image, saved twice. Measured: images saved
anew at half the size differ by up to 6, different ones of one subject by 26 and more."""


@dataclass(frozen=True, kw_only=True)
class Photo:
    """An image that has been decoded once, so that it can be relied on."""

    path: Path
    size: tuple[int, int]
    """Width and height in pixels, upright."""
    has_alpha: bool
    digest: str
    """Of the file's bytes."""
    look: imagehash.ImageHash
    """Perceptual hash: images that look alike differ in few bits."""

    def check_unchanged(self) -> None:
        """Make sure that the file is still the one that was checked.

        Raises:
            ImageError: it is another; under the digest of the first it must not be learned from, nor kept in a cache.
        """
        if file_digest(self.path) != self.digest:
            raise ImageError(f"{self.path} has changed since the run began: start anew.")

    def read(self, background: Color = WHITE) -> Image.Image:
        """Decode it in RGB, transparency over ``background``."""
        return read_image(self.path, background)


def image_files(folder: Path) -> list[Path]:
    """Files of a folder that should be images, by name; hidden ones, sub-folders and captions are none.

    Raises:
        ImageError: there is no such folder.
    """
    if not folder.is_dir():
        raise ImageError(f"There is no image folder {folder}: check the path.")
    files = sorted(
        path
        for path in folder.iterdir()
        if (path.is_file() or not path.exists())  # a link that leads nowhere is named later
        and not path.name.startswith(".")
        and path.suffix.lower() != ".toml"
        and path.name not in captions.TABLES
    )
    with_caption = {path.stem for path in files if path.suffix.lower() not in captions.ENDINGS}
    return [path for path in files if path.suffix.lower() not in captions.ENDINGS or path.stem not in with_caption]


def check_images(paths: Iterable[Path], folder: Path) -> list[Photo]:
    """Decode files of a folder; one warning names those that are no images, another those that are animated.

    Raises:
        ImageError: not one image could be read.
    """
    photos: list[Photo] = []
    refused: list[str] = []
    animated: list[str] = []
    for path in paths:
        try:
            layers = read_layers(path)
        except ImageError as error:
            refused.append(str(error))
            continue
        if layers.animated:
            animated.append(path.name)
        photos.append(
            Photo(
                path=path,
                size=layers.colors.size,
                has_alpha=layers.alpha is not None,
                digest=file_digest(path),
                look=imagehash.phash(layers.colors, hash_size=16),
            )
        )
    reasons = " ".join(refused)
    if not photos:
        raise ImageError(
            f"The folder {folder} holds no images: put some there (JPEG, PNG, WebP, …). {reasons}".rstrip()
        )
    if refused:
        logger.warning("Left out %d of %d files. %s", len(refused), len(refused) + len(photos), reasons)
    if animated:
        logger.warning("Of images that move, the first frame is used: %s.", ", ".join(animated))
    return photos


def file_digest(path: Path) -> str:
    """Digest a file's bytes."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def read_images(paths: Iterable[Path], folder: Path) -> list[Image.Image]:
    """Check and decode files of a folder: see :func:`check_images`."""
    return [photo.read() for photo in check_images(paths, folder)]


def check_apart(images: Iterable[Path], folders: Mapping[str, Path]) -> None:
    """Make sure that folders, by the flags that name them, are none of images to learn from.

    Raises:
        ConfigError: one of them is; what is written there would be learned from next time.
    """
    learned = {folder.resolve() for folder in images}
    for flag, folder in folders.items():
        if folder.resolve() in learned:
            raise ConfigError(f"{flag} is {folder}, which holds the images to learn from: name another folder.")


def report_duplicates(photos: Sequence[Photo]) -> None:
    """Warn of images that look the same: they would count twice."""
    pairs = [(one, other) for one, other in combinations(photos, 2) if one.look - other.look <= SAME]
    if pairs:
        named = "; ".join(f"{one.path} and {other.path}" for one, other in pairs)
        logger.warning("Some images look the same, and count twice as long as both are there: %s.", named)
