"""Checked reading of files from outside; see :mod:`hra_diffusion.formats.tensors` for safetensors.

A reader returns a value or raises an error of this project, whatever the file holds.
"""

import json
import stat
import tomllib
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError

from hra_diffusion.errors import AdapterFileError, HRAError
from hra_diffusion.text import shorten

_MAX_TOML_WORK: Final = 4_000_000
"""Limit of (dots + keys) · dots: Python's parser follows each part of a dotted key anew for each key below it."""


@contextmanager
def reading(path: Path | str, kind: type[HRAError] = AdapterFileError) -> Generator[None]:
    """Turn any exception of a reader into an error of one sentence with the path; this project's errors pass.

    Args:
        path: the file or folder.
        kind: the class of the error.
    """
    try:
        yield
    except HRAError:
        raise
    except MemoryError as error:
        raise kind(f"{path} needs more memory than there is.") from error
    except OSError as error:
        raise kind(f"Cannot read {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise kind(f"{path} is no intact safetensors file ({error}); pickled files are never read.") from error
    except Exception as error:  # libraries raise anything for damaged files: KeyError, struct.error, RecursionError, …
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise kind(f"{path} is damaged: {reason or type(error).__name__}.") from error


def check_regular(path: Path) -> None:
    """Refuse what is no file: a pipe would never end, and a device may be endless.

    Raises:
        AdapterFileError: the path is a folder, a pipe, a socket or a device, or does not exist.
    """
    with reading(path):
        mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        type_ = "folder" if stat.S_ISDIR(mode) else "pipe, socket or device"
        raise AdapterFileError(f"Cannot read {path}: it is a {type_}, not a file.")


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        AdapterFileError: the file is missing, unreadable, or no regular file.
    """
    check_regular(path)
    with reading(path):
        return path.read_bytes()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        AdapterFileError: the file is missing, is no JSON object, or has a key twice.
    """
    return parse_object(read_bytes(path), path)


def parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        ValueError: the text is no TOML, is nested too deeply, or has so many dotted keys that parsing takes minutes.
    """
    dots = text.count(".")
    if dots * (dots + text.count("=") + text.count("[")) > _MAX_TOML_WORK:
        raise ValueError(f"it has {dots:,} dots, too many for settings")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def parse_object(data: bytes, path: Path) -> dict[str, Any]:
    """Parse a JSON object.

    Args:
        data: the JSON.
        path: the file that holds it, for messages.

    Raises:
        AdapterFileError: it is no JSON object, or has a key twice.
    """

    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if repeated := sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1):
            raise AdapterFileError(f"{path} has these keys more than once: {shorten(repeated)}.")
        return dict(pairs)

    try:
        parsed = json.loads(data, object_pairs_hook=refuse_duplicates)
    except (ValueError, RecursionError) as error:
        if isinstance(error, AdapterFileError):
            raise
        raise AdapterFileError(f"{path} is no JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise AdapterFileError(f"{path} must hold a JSON object; found a {type(parsed).__name__}.")
    return parsed
