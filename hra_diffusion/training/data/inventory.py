"""Inventory of a folder that a person named: whatever it holds is used, or reported as not used with the reason.

Hidden files, litter of operating systems, and documents such as LICENSE are neither.
"""

import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path

from hra_diffusion.errors import ImageError
from hra_diffusion.formats.run_folder import is_run
from hra_diffusion.text import shorten
from hra_diffusion.training.data.captions import CAPTION_SUFFIXES, METADATA_FILES

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".webp", ".avif"),
    *(".tif", ".tiff", ".bmp", ".gif", ".heic", ".heif"),
)
"""Suffixes by which images are recognized without opening a file."""

HELD_OUT = "held_out"
"""Sub-folder of images for evaluation, never used in training."""

SUBJECT_FILE = "subject.toml"
"""File with the prompts of a subject, beside its images."""

_LITTER = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir")
_DOCUMENT = re.compile(r"(licen[cs]e|readme|notice)(\.md|\.txt)?", re.IGNORECASE)
_MASK = re.compile(r"(.+)(?:-masklabel|_mask)", re.IGNORECASE)
_MAX_FOLDERS = 1000
"""Folders to search for images below one, at most."""


def entries(folder: Path) -> list[Path]:
    """List the files and folders in a folder, sorted by name, without litter.

    Raises:
        ImageError: the folder does not exist.
    """
    if not folder.is_dir():
        raise ImageError(f"There is no image folder {folder}: check the path.")
    return sorted(
        path
        for path in folder.iterdir()
        if not (path.name.startswith(".") or path.name.lower() in _LITTER or _DOCUMENT.fullmatch(path.name))
    )


def image_files(folder: Path) -> list[Path]:
    """List the files of a folder that should be images, sorted by name.

    Sub-folders, captions, TOML files and masks of other images are left out.

    Raises:
        ImageError: the folder does not exist.
    """
    files = [
        path
        for path in entries(folder)
        if (path.is_file() or not path.exists())  # check_images reports a broken link
        and path.suffix.lower() != ".toml"
        and path.name not in METADATA_FILES
    ]
    image_names = {path.stem for path in files if path.suffix.lower() not in CAPTION_SUFFIXES}
    return [
        path
        for path in files
        if not (path.stem in image_names if path.suffix.lower() in CAPTION_SUFFIXES else masked(path) in image_names)
    ]


def masked(path: Path) -> str | None:
    """Return the stem of the image that a mask is named after, 1 of 1_mask.png and 1-masklabel.png, or None."""
    match = _MASK.fullmatch(path.stem) if path.suffix.lower() in IMAGE_SUFFIXES else None
    return match and match[1]


def has_images(folder: Path) -> bool:
    """Whether a folder holds images, by their suffixes."""
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in image_files(folder))


def folders_with_images(folder: Path) -> Iterator[Path]:
    """Yield the folders below a folder that hold images."""
    for path, names, _ in islice(os.walk(folder), _MAX_FOLDERS):
        names.sort()
        if Path(path) != folder and has_images(Path(path)):
            yield Path(path)


def report_unused(folder: Path, used: Collection[Path], reasons: Mapping[Path, str]) -> None:
    """Warn of the entries of a folder that are not used, grouped by the reason.

    Args:
        folder: the folder.
        used: the used files and folders; others may be among them.
        reasons: reasons by entry, where other than what the entry itself says.
    """
    known = {path.resolve() for path in used}
    groups: dict[str, list[str]] = {}
    for path in entries(folder):
        if path.resolve() not in known and (reason := reasons.get(path) or _reason(path)):
            groups.setdefault(reason, []).append(path.name)
    if groups:
        texts = "; ".join(f"{shorten(names)} ({reason})" for reason, names in groups.items())
        logger.warning("Not used in %s: %s.", folder, texts)


def _reason(path: Path) -> str:
    """Return why an entry is not used; "" for an empty folder."""
    if not path.is_dir():
        return f"a mask of {masked(path)}: use --mask_data_dir" if masked(path) else "neither image nor caption"
    if is_run(path):
        return "output folder of a run"
    if re.match("0+_", path.name):
        return "0_ means no repeats"
    if has_images(path):
        return "a folder of images beside those in use: for one subject a folder, move the others away"
    if next(folders_with_images(path), None):
        return "its images are in deeper folders"
    return "a folder without images" if entries(path) else ""
