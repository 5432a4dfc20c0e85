"""Captions of a folder's images: a text file beside each image, or a metadata table.

    dog/1.jpg, dog/1.txt                  the caption; or 1.caption
    dog/metadata.jsonl                    {"file_name": "1.jpg", "text": "a sks dog on grass"}, one a line
    dog/metadata.csv                      a table with the columns file_name and text
    pets/metadata.jsonl                   {"file_name": "dog/1.jpg", "text": …}, for the folders in its folder

The layouts are those of kohya's scripts and of Hugging Face's image folders. The file beside the image has precedence,
then the table in its folder.
"""

import csv
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hra_diffusion.errors import ConfigError
from hra_diffusion.text import shorten

logger = logging.getLogger(__name__)

CAPTION_SUFFIXES = (".txt", ".caption")
METADATA_FILES = ("metadata.jsonl", "metadata.csv")


def read_captions(images: Sequence[Path], folder: Path) -> dict[Path, str]:
    """Read the captions of images of a folder; images without a caption are not in the result.

    Raises:
        ConfigError: a caption file or a table cannot be read.
    """
    texts: dict[Path, str] = {}
    for table in reversed(METADATA_FILES):
        texts |= _read_table(folder.parent / table, below=folder)
    for table in reversed(METADATA_FILES):
        texts |= _read_table(folder / table)
    if unknown := [path for path in texts.keys() - set(images) if not path.is_file()]:
        names = ", ".join(sorted(path.name for path in unknown))
        logger.warning("%s has captions of images that do not exist: %s.", folder, names)
    in_tables = _on_one_line({image: texts[image] for image in images if image in texts})
    beside = read_caption_files(images)
    if other := sorted(image.name for image in in_tables.keys() & beside.keys() if in_tables[image] != beside[image]):
        logger.warning("Text files beside images of %s replace the captions of a table: %s.", folder, shorten(other))
    return in_tables | beside


def read_caption_files(images: Sequence[Path]) -> dict[Path, str]:
    """Read captions from text files beside the images; images without a file are not in the result.

    Raises:
        ConfigError: a file cannot be read.
    """
    files = [path for folder in {image.parent for image in images} for path in folder.iterdir()]
    beside = {(path.parent, path.stem, path.suffix.lower()): path for path in files}
    caption_files = {
        image: file
        for image in images
        for suffix in reversed(CAPTION_SUFFIXES)
        if (file := beside.get((image.parent, image.stem, suffix)))
    }
    first, second = CAPTION_SUFFIXES
    both = [image for image in caption_files if (image.parent, image.stem, second) in beside]
    if unused := sorted(f"{image.stem}{second}" for image in both if caption_files[image].suffix.lower() == first):
        logger.warning("Not used beside %s files of the same name: %s.", first, shorten(unused))
    return _on_one_line({image: _read_text(file) for image, file in caption_files.items()})


def _on_one_line(texts: Mapping[Path, str]) -> dict[Path, str]:
    """Join the lines of each text; leave out empty texts."""
    lines = {image: " ".join(text.split()) for image, text in texts.items()}
    return {image: line for image, line in lines.items() if line}


def _read_table(path: Path, below: Path | None = None) -> dict[Path, str]:
    """Read the captions of a table by their images, or only those of a folder's images (``below``)."""
    if not path.exists():
        return {}
    texts: dict[Path, str] = {}
    for number, row in (_read_csv if path.suffix == ".csv" else read_json_lines)(path):
        name, text = (row.get(key) for key in ("file_name", "text"))
        if below and not (isinstance(name, str) and (path.parent / name).parent == below):
            continue
        if not isinstance(name, str) or not isinstance(text, str):
            raise ConfigError(f"{path} has no file_name and text in line {number}: {row!r}. Give both.")
        texts[path.parent / name] = text
    return texts


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a CSV table as dictionaries, each with the number of its (last) line.

    Raises:
        ConfigError: the file cannot be read.
    """
    rows = csv.DictReader(io.StringIO(_read_text(path)))
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise ConfigError(
            f"{path} is no valid CSV table of captions ({error}): correct line {rows.line_num}."
        ) from error


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a JSON Lines file, each object with the number of its line; skip empty lines.

    Raises:
        ConfigError: the file cannot be read.
    """
    for number, line in enumerate(_read_text(path).split("\n"), 1):  # splitlines() also splits at U+2028 and the like
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}, line {number}, is no JSON ({error}): {line[:80]}") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{path}, line {number}, is no JSON object in braces: {line[:80]}")
            yield number, row


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # -sig: editors on Windows write a byte order mark
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): correct or remove it.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not in UTF-8 ({error}): save it as UTF-8.") from error
