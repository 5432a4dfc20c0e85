"""The images of the studio's folder with their requests: search, favorites, deletion.

An image's name is its path below the folder, such as "2026-11-29/101500-000000001-seed3.png". Links are not followed.
"""

import json
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from hra_diffusion.errors import AdapterFileError, HRAError, ImageError
from hra_diffusion.formats.files import write_file, writing
from hra_diffusion.formats.reading import read_json, reading
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.images.metadata import read_request, write_png

PAGE_SIZE = 24
"""Number of images of a page of results."""
_FOLDER_NAME = re.compile(r"[\w-][\w .-]{0,59}")
_FILE_NAME = re.compile(r"[\w(-][\w .,()+=@-]{0,119}\.png")
_MAX_QUERY = 300
MAX_SIDE = 2048
"""Longest side of an image that is used as a start image."""
_MAX_CACHED = 20_000
"""Limit of the requests in memory."""
_STARRED = "images"
"""Key of the file of favorites."""


@dataclass(frozen=True, kw_only=True)
class SavedImage:
    """An image is finished and saved."""

    request: GenerateRequest
    image: Image.Image
    name: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image of the folder."""

    name: str
    path: Path
    changed: int
    """Time of the last change in nanoseconds."""
    request: GenerateRequest | None
    """None for a damaged file, or one without settings."""
    starred: bool

    def nearest_size(self, multiple: int) -> tuple[int, int]:
        """Return the width and height of a request that are nearest to the image's, in pixels.

        Args:
            multiple: size multiple of the model.

        Raises:
            ImageError: the file is damaged.
        """
        with reading(self.path, ImageError), Image.open(self.path, formats=("PNG",)) as image:
            scale = min(1.0, MAX_SIDE / max(image.size))
            width, height = (max(8, round(side * scale / multiple)) * multiple for side in image.size)
        return min(width, MAX_SIDE), min(height, MAX_SIDE)


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """A page of the images that a search found, newest first."""

    images: tuple[StoredImage, ...]
    total: int
    """Number of images on all pages."""
    page: int
    """Number of the page, from 1."""
    pages: int


class ImageStore:
    """The images of a folder.

    Args:
        folder: folders of images, one for each day.
        favorites: a JSON file with the names of starred images.
    """

    def __init__(self, folder: Path, favorites: Path) -> None:
        self.folder, self._favorites = folder, favorites
        self._requests: OrderedDict[tuple[str, int], GenerateRequest | None] = OrderedDict()
        self._lock = threading.Lock()

    def add_image(self, image: Image.Image, request: GenerateRequest, model: str) -> SavedImage:
        """Save a new image by day, time and seed, with its request and the name of its base model."""
        now = time.time_ns()
        day, clock = time.strftime("%Y-%m-%d %H%M%S", time.localtime(now / 1e9)).split()
        name = f"{day}/{clock}-{now % 10**9:09d}-seed{request.seed}.png"
        write_png(self.folder / name, image, request, model)
        return SavedImage(request=request, image=image, name=name, path=self.folder / name)

    def search(self, query: str = "", *, starred: bool = False, page: int = 1) -> SearchResult:
        """Find images whose prompt, adapters or seed contain all words of a query.

        Args:
            query: words, of which 300 characters are used; case is ignored.
            starred: favorites only.
            page: number of the page; one out of range becomes the nearest one.
        """
        words = query[:_MAX_QUERY].lower().split()
        favorites = self._read_favorites()
        matching = [(name, changed) for name, changed in self._files() if not starred or name in favorites]
        if words:
            matching = [file for file in matching if _matches(self._request(*file), words)]
        pages = max(1, -(-len(matching) // PAGE_SIZE))
        page = min(max(1, page), pages)
        images = tuple(
            self._image(name, changed, favorites)
            for name, changed in matching[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]
        )
        return SearchResult(images=images, total=len(matching), page=page, pages=pages)

    def find(self, name: object) -> StoredImage:
        """Return the image of a name.

        Raises:
            ImageError: there is no such image.
        """
        folder, _, file = name.partition("/") if isinstance(name, str) else ("", "", "")
        if isinstance(name, str) and _FOLDER_NAME.fullmatch(folder) and _FILE_NAME.fullmatch(file):
            path = self.folder / folder / file
            with suppress(OSError):
                if path.is_file() and not (path.is_symlink() or path.parent.is_symlink()):
                    return self._image(name, path.stat().st_mtime_ns, self._read_favorites())
        raise ImageError(f"There is no image {str(name)[:200]!r}: it was deleted, or the name is wrong.")

    def find_file(self, file: str) -> StoredImage | None:
        """Return the image whose copy has this file name, or None."""
        paths = self.folder.glob(f"*/{file}") if _FILE_NAME.fullmatch(file) else ()
        with suppress(ImageError):
            return next((self.find(f"{path.parent.name}/{file}") for path in paths), None)

    def star(self, name: object, starred: bool) -> StoredImage:
        """Add an image to the favorites, or remove it; errors as in `find`, or the file cannot be written."""
        image = self.find(name)
        self._change_favorites(image.name, starred)
        return self.find(name)

    def delete_image(self, name: object) -> StoredImage:
        """Delete an image permanently; errors as in `find`, or the file cannot be removed."""
        image = self.find(name)
        with writing(image.path):
            image.path.unlink(missing_ok=True)
        if image.starred:
            self._change_favorites(image.name, starred=False)
        return image

    def _files(self) -> list[tuple[str, int]]:
        """Return the names of all images and the times of their last changes, newest first."""
        return sorted(self._scan(), reverse=True)

    def _scan(self) -> Iterator[tuple[str, int]]:
        with suppress(OSError), os.scandir(self.folder) as days:
            for day in days:
                if _FOLDER_NAME.fullmatch(day.name) and day.is_dir(follow_symlinks=False):
                    with suppress(OSError), os.scandir(day.path) as files:
                        for file in files:
                            if _FILE_NAME.fullmatch(file.name) and file.is_file(follow_symlinks=False):
                                with suppress(OSError):  # deleted meanwhile
                                    yield f"{day.name}/{file.name}", file.stat().st_mtime_ns

    def _image(self, name: str, changed: int, favorites: set[str]) -> StoredImage:
        return StoredImage(
            name=name,
            path=self.folder / name,
            changed=changed,
            request=self._request(name, changed),
            starred=name in favorites,
        )

    def _request(self, name: str, changed: int) -> GenerateRequest | None:
        """Read the request of an image once, from the file's header."""
        key = (name, changed)
        with self._lock:
            if key in self._requests:
                return self._requests[key]
        try:
            request = read_request(self.folder / name)
        except HRAError:
            request = None
        with self._lock:
            self._requests[key] = request
            while len(self._requests) > _MAX_CACHED:
                self._requests.popitem(last=False)
        return request

    def _read_favorites(self) -> set[str]:
        try:
            names = read_json(self._favorites).get(_STARRED)
        except AdapterFileError:  # none yet, or a damaged file
            return set()
        return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()

    def _change_favorites(self, name: str, starred: bool) -> None:
        with self._lock:
            favorites = self._read_favorites()
            kept = favorites | {name} if starred else favorites - {name}
            text = json.dumps({_STARRED: sorted(kept)}, indent=1)
            write_file(self._favorites, lambda path: path.write_text(text, encoding="utf-8"))


def _matches(request: GenerateRequest | None, words: list[str]) -> bool:
    if request is None:
        return False
    adapters = " ".join(use.name for use in request.adapters)
    text = f"{request.prompt}\n{adapters}\n{request.seed}".lower()
    return all(word in text for word in words)
