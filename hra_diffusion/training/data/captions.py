"""What each image of a folder shows: in a text file beside it, or in a table of the folder.

    dog/1.jpg, dog/1.txt                  the text; .caption does as well
    dog/metadata.jsonl                    {"file_name": "1.jpg", "text": "a sks dog on grass"}, one a line
    dog/metadata.csv                      a table with the columns file_name and text

The layouts are those of kohya's scripts and of Hugging Face's image folders. The file beside the image goes first.
"""

import csv
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hra_diffusion.errors import ConfigError

logger = logging.getLogger(__name__)

ENDINGS = (".txt", ".caption")
TABLES = ("metadata.jsonl", "metadata.csv")


def read_captions(images: Sequence[Path], folder: Path) -> dict[Path, str]:
    """Find the captions of some images of a folder; an image without one is not in the result.

    Raises:
        ConfigError: a caption file or a table cannot be read.
    """
    texts = {folder / name: text for table in reversed(TABLES) for name, text in _read_table(folder / table).items()}
    if unknown := texts.keys() - set(images):
        names = ", ".join(sorted(path.name for path in unknown))
        logger.warning("%s has captions for images that are not there: %s.", folder, names)
    return _in_lines({image: texts[image] for image in images if image in texts}) | read_beside(images)


def read_beside(images: Sequence[Path]) -> dict[Path, str]:
    """Find the captions of images in text files beside them; an image without one is not in the result.

    Raises:
        ConfigError: a file cannot be read.
    """
    present = [path for folder in {image.parent for image in images} for path in folder.iterdir()]
    beside = {(path.parent, path.stem, path.suffix.lower()): path for path in present}
    files = {
        image: file
        for image in images
        for ending in reversed(ENDINGS)
        if (file := beside.get((image.parent, image.stem, ending)))
    }
    return _in_lines({image: _read_text(file) for image, file in files.items()})


def _in_lines(texts: Mapping[Path, str]) -> dict[Path, str]:
    """Put each text on one line; empty ones are none."""
    lines = {image: " ".join(text.split()) for image, text in texts.items()}
    return {image: line for image, line in lines.items() if line}


def _read_table(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    texts: dict[str, str] = {}
    for number, row in (_read_csv if path.suffix == ".csv" else read_json_lines)(path):
        name, text = (row.get(key) for key in ("file_name", "text"))
        if not isinstance(name, str) or not isinstance(text, str):
            raise ConfigError(f"{path} has no file_name and text in line {number}: {row!r}. Give both.")
        texts[name] = text
    return texts


def _read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read the rows of a table by the names of its columns, each with the number of its (last) line.

    Raises:
        ConfigError: it cannot be read.
    """
    rows = csv.DictReader(io.StringIO(_read_text(path)))
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise ConfigError(f"{path} is no table of captions ({error}): correct line {rows.line_num}.") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file of one JSON object a line, each with its line's number; empty lines are passed over.

    Raises:
        ConfigError: it cannot be read.
    """
    for number, line in enumerate(_read_text(path).split("\n"), 1):  # splitlines() knows more ends than JSON does
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
        return path.read_text(encoding="utf-8-sig")  # Windows' editors begin with a mark
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): correct or remove it.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not in UTF-8 ({error}): save it so.") from error
