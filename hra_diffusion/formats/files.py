"""Reading and writing files so that nothing half-written is ever seen and nothing hostile is ever run."""

import errno
import json
import math
import os
import re
import secrets
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from hra_diffusion.errors import AdapterFileError, OutputError


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write files by temporary name, fsync and rename; none is renamed before all are safely on the disk.

    Raises:
        OutputError: the place cannot be written; files that were there before are untouched.
    """
    temporary = {path: _hidden(path, "new") for path in contents}
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
        raise _unwritable(", ".join(map(str, contents)), next(iter(contents)), error) from error
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
        raise _unwritable(str(path), path, error) from error


def check_writable(folder: Path, flag: str = "--output_dir") -> None:
    """Make sure that files can be written below ``folder``, which ``flag`` chose, leaving no trace.

    Raises:
        OutputError: a part of the path is a file, or the nearest folder that exists refuses a new file.
    """
    existing = existing_part(folder)
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OutputError(
            f"The {flag[2:-4]} folder {folder} cannot be written ({error.strerror}: {existing}): "
            f"choose another with {flag}."
        ) from error


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have ``write`` produce a file under a temporary name with the same ending, then put it in place.

    Raises:
        OutputError: the file cannot be written; what was there before is intact.
    """
    temporary = _hidden(path, "new")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing(folder: Path) -> Generator[Path]:
    """Yield a new, hidden folder to fill; it takes the place of ``folder`` at the end of the ``with`` block.

    When the block raises, or the new folder cannot be brought to the disk, what was there before stays.

    Raises:
        OutputError: something cannot be written.
    """
    folder = folder.resolve() if folder.is_symlink() else folder  # the link stays
    new, old = _hidden(folder, "new"), _hidden(folder, "old")
    with writing(folder):
        try:
            new.mkdir(parents=True)
            yield new
            for path in (*new.rglob("*"), new):
                sync(path)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            sync(folder.parent)
        finally:
            if old.exists() and not folder.exists():
                old.rename(folder)
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that it is never seen in part: it is hidden first."""
    hidden = _hidden(folder, "new")
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove what a killed process left half-done in a folder, and put back what it was about to replace."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        if not (leftover := re.fullmatch(r"\.[0-9a-f]{8}-(new|old)-(.+)", path.name)):
            continue
        kind, name = leftover.groups()
        if kind == "old" and not (folder / name).exists():
            path.rename(folder / name)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _hidden(path: Path, kind: Literal["new", "old"]) -> Path:
    """Return a name that nobody else has, for what is to take the place of something, or gives it up; see `tidy`."""
    return path.with_name(f".{secrets.token_hex(4)}-{kind}-{path.name}")


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
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not _is_finite(tensor)]
    if broken:
        raise AdapterFileError(f"{path} holds numbers that are not finite, in {', '.join(broken[:8])}.")
    return tensors


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are; their sum says so at once, unless it overflows."""
    return math.isfinite(tensor.sum(dtype=torch.float64).item()) or bool(tensor.isfinite().all())


def existing_part(path: Path) -> Path:
    """Return the path itself, or the nearest folder above it that exists."""
    return next(part for part in (path, *path.absolute().parents) if part.exists())


_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Make room on the disk of {place}, which has {free:,.1f} MB left"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "Make {place} writable"),
    errno.EFBIG: "Let files be larger, which the system limits (ulimit -f)",
}


def _unwritable(names: str, path: Path, error: OSError) -> OutputError:
    """Say what could not be written, why, and what to do."""
    place = existing_part(path)
    remedy = _REMEDIES.get(error.errno or 0, "Look after {place}").format(
        place=place, free=shutil.disk_usage(place).free / 1e6
    )
    return OutputError(
        f"Cannot write {names} ({error.strerror or error}); what was there before is intact. "
        f"{remedy}, or write elsewhere."
    )


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
