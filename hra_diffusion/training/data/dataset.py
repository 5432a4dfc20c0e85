"""Image files of a folder, checked before training.

Each file is decoded before the first step, so that a damaged file is reported then and not at step 300. Its path, size
and digests are kept; pixels are decoded again when needed.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.formats.images import WHITE, Color, read_image, read_layers
from hra_diffusion.progress import tracked
from hra_diffusion.text import shorten
from hra_diffusion.training.data.inventory import folders_with_images

try:
    from imagehash import ImageHash, phash
except ImportError:  # the extra "duplicates"
    phash = None

logger = logging.getLogger(__name__)

MAX_HASH_DISTANCE = 12
"""Perceptual hashes of 256 bits that differ in at most so many bits are of one image, saved twice. Measured: an image
saved again at half the size differs by up to 6 bits, other images of the same subject by 26 and more."""


@dataclass(frozen=True, kw_only=True)
class Photo:
    """An image file that has been decoded once."""

    path: Path
    size: tuple[int, int]
    """Width and height in pixels, after EXIF rotation."""
    has_alpha: bool
    digest: str
    """Digest of the file's bytes."""
    perceptual_hash: "ImageHash | None"
    """Hash of the appearance: similar images differ in few bits. None without the extra ``duplicates``."""

    def check_unchanged(self) -> None:
        """Refuse a file that has changed since it was checked.

        Raises:
            ImageError: the file has another digest; training or caching it under the first digest would be wrong.
        """
        if file_digest(self.path) != self.digest:
            raise ImageError(f"{self.path} has changed since the run began: start the run again.")

    def decode(self, background: Color = WHITE) -> Image.Image:
        """Decode the image in RGB, with transparency over ``background``."""
        return read_image(self.path, background)


def check_images(paths: Iterable[Path], folder: Path) -> list[Photo]:
    """Decode the files of a folder, and warn of unreadable and of animated ones.

    Raises:
        ImageError: no image can be read.
    """
    photos: list[Photo] = []
    refused: list[str] = []
    animated: list[str] = []
    for path in tracked(list(paths), "reading images"):
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
                perceptual_hash=phash and phash(layers.colors, hash_size=16),
            )
        )
    reasons = " ".join(refused)
    if not photos:
        below = [str(path.relative_to(folder)) for path in folders_with_images(folder)]
        deeper = f"Its folders hold some: {shorten(below)}: name one of them. " if below else ""
        raise ImageError(
            f"The folder {folder} holds no images: add some (JPEG, PNG, WebP, …). {deeper}{reasons}".rstrip()
        )
    if refused:
        logger.warning("Left out %d of %d files. %s", len(refused), len(refused) + len(photos), reasons)
    if animated:
        logger.warning("Of animated images, the first frame is used: %s.", ", ".join(animated))
    return photos


def file_digest(path: Path) -> str:
    """Digest a file's bytes."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def read_images(paths: Iterable[Path], folder: Path) -> list[Image.Image]:
    """Decode the files of a folder after :func:`check_images`."""
    return [photo.decode() for photo in check_images(paths, folder)]


def check_output_folders(image_folders: Iterable[Path], outputs: Mapping[str, Path]) -> None:
    """Refuse to write into a folder of training images.

    Args:
        image_folders: the folders of training images.
        outputs: the folders to write into, by their flags.

    Raises:
        ConfigError: an output folder holds training images; the next run would train on its outputs.
    """
    training_folders = {folder.resolve() for folder in image_folders}
    for flag, folder in outputs.items():
        if folder.resolve() in training_folders:
            raise ConfigError(f"{flag} is {folder}, which holds the training images: name another folder.")


def report_duplicates(photos: Sequence[Photo]) -> None:
    """Warn of images with nearly the same perceptual hash, or the same bytes: duplicates count twice."""
    if not phash and len(photos) > 1:
        logger.warning(
            "Only identical files are recognized as duplicates; for the same image saved twice: "
            "pip install 'hra-diffusion[duplicates]'."
        )
    pairs = [
        f"{photos[first].path} and {photos[second].path}"
        for first in tracked(range(len(photos)), "comparing images")
        for second in range(first + 1, len(photos))
        if _are_duplicates(photos[first], photos[second])
    ]
    if pairs:
        logger.warning("Duplicate images count twice: %s. Remove one of each two.", "; ".join(pairs))


def _are_duplicates(first: Photo, second: Photo) -> bool:
    if first.perceptual_hash is None or second.perceptual_hash is None:
        return first.digest == second.digest
    return first.perceptual_hash - second.perceptual_hash <= MAX_HASH_DISTANCE
