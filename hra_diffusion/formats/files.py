"""Reading and writing files so that nothing half-written is ever seen and nothing hostile is ever run."""

import json
import os
import secrets
import struct
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from hra_diffusion.errors import AdapterFileError, OutputError


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files by temporary name, fsync and rename; none is renamed before all are safely on the disk.

    Raises:
        OutputError: the place cannot be written; files that were there before are untouched.
    """
    temporary = {path: path.with_name(f".{path.name}.{secrets.token_hex(4)}") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary[path].open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, hidden in temporary.items():
            hidden.replace(path)
        for folder in {path.parent for path in contents}:
            sync(folder)
    except OSError as error:
        raise OutputError(f"Cannot write {', '.join(map(str, contents))}: {error.strerror or error}.") from error
    finally:
        for hidden in temporary.values():
            with suppress(OSError):
                hidden.unlink()


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn what the system says about a full or unwritable disk into an OutputError that names the result."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"Cannot write {path} ({error.strerror or error}); what was there before is intact."
        ) from error


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` produce a file under a temporary name with the same ending, then put it in place.

    Raises:
        OutputError: the file cannot be written; what was there before is intact.
    """
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk; folders only where the system can."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        AdapterFileError: the file is missing, is no JSON object, or names a key twice.
    """
    try:
        return _parse_object(path.read_bytes(), path)
    except OSError as error:
        raise AdapterFileError(f"Cannot read {path}: {error.strerror or error}.") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        AdapterFileError: the file is missing, is not intact, names a tensor twice or with a path in its name, or holds
            numbers that are not finite.
    """
    try:
        data = path.read_bytes()
        tensors = load(data)
    except OSError as error:
        raise AdapterFileError(f"Cannot read {path}: {error.strerror or error}.") from error
    except SafetensorError as error:
        raise AdapterFileError(
            f"{path} is no intact safetensors file ({error}); pickled files are never read."
        ) from error
    _parse_object(data[8 : 8 + struct.unpack("<Q", data[:8])[0]], path)
    for name in tensors:
        if "\0" in name or "\\" in name or ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise AdapterFileError(f"{path} holds a tensor with a path for a name: {name!r}.")
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise AdapterFileError(f"{path} holds numbers that are not finite, in {', '.join(broken[:8])}.")
    return tensors


def _parse_object(data: bytes, path: Path) -> dict[str, Any]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if repeated := sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1):
            raise AdapterFileError(f"{path} says more than once what these are: {', '.join(repeated[:8])}.")
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
