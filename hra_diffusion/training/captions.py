"""What each picture of a folder shows: in a text file beside it, or in a table of the folder.

    dog/1.jpg, dog/1.txt                  the text; .caption does as well
    dog/metadata.jsonl                    {"file_name": "1.jpg", "text": "a sks dog on grass"}, one a line
    dog/metadata.csv                      a table with the columns file_name and text

The layouts are those of kohya's scripts and of Hugging Face's image folders. The file beside the picture goes first.
"""

import csv
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hra_diffusion.errors import ConfigError

logger = logging.getLogger(__name__)

ENDINGS = (".txt", ".caption")
TABLES = ("metadata.jsonl", "metadata.csv")


def read_captions(pictures: Sequence[Path], folder: Path) -> dict[Path, str]:
    """Find the captions of some pictures of a folder; a picture without one is not in the result.

    Raises:
        ConfigError: a caption file or a table cannot be read.
    """
    texts = {folder / name: text for table in TABLES for name, text in _read_table(folder / table).items()}
    if unknown := texts.keys() - set(pictures):
        names = ", ".join(sorted(path.name for path in unknown))
        logger.warning("%s has captions for pictures that are not there: %s.", folder, names)
    for picture in pictures:
        for file in (picture.with_suffix(ending) for ending in ENDINGS):
            if file.exists():
                texts[picture] = _read_text(file)
    lines = {picture: " ".join(texts.get(picture, "").split()) for picture in pictures}
    return {picture: line for picture, line in lines.items() if line}


def _read_table(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    lines = [line for line in _read_text(path).splitlines() if line.strip()]
    try:
        rows: list[Any] = list(csv.DictReader(lines)) if path.suffix == ".csv" else [*map(json.loads, lines)]
    except ValueError as error:
        raise ConfigError(f"{path} is no table of captions ({error}): write one JSON object a line.") from error
    texts: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        name, text = (row.get(key) if isinstance(row, dict) else None for key in ("file_name", "text"))
        if not isinstance(name, str) or not isinstance(text, str):
            raise ConfigError(f"{path} has no file_name and text in entry {number}: {row!r}. Give both.")
        texts[name] = text
    return texts


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # Windows' editors begin with a mark
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): correct or remove it.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not in UTF-8 ({error}): save it so.") from error
