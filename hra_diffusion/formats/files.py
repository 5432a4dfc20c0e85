"""Atomic writing of files and folders, and checked reading of JSON and safetensors, never pickle."""

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
from typing import Any, Final, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from hra_diffusion.errors import AdapterFileError, OutputError

ON_WINDOWS: Final = os.name == "nt"
UNPORTABLE: Final = "a name that Windows reserves or does not allow"
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\..*)?", re.IGNORECASE | re.DOTALL)


def is_portable(name: str) -> bool:
    """Whether every system allows a file with this name: Windows reserves names, with any ending."""
    return not (
        _RESERVED.fullmatch(name) or re.search(r'[<>:"/\\|?*\x00-\x1f\ud800-\udfff]', name) or name.endswith((".", " "))
    )


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Write several files atomically: temporary names and fsync first, then all are renamed.

    Raises:
        OutputError: a file cannot be written; existing files are intact.
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
    """Raise an OutputError with the path for the system's errors about a full or unwritable disk."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise _unwritable(str(path), path, error) from error


def check_writable(folder: Path, flag: str = "--output_dir") -> None:
    """Check that files can be written below the folder of a flag, without leaving any.

    Raises:
        OutputError: a part of the path is a file, the nearest existing folder refuses a new file, or Windows has no
            such name.
    """
    for part in folder.parts if ON_WINDOWS else ():
        if part not in (folder.anchor, ".", "..") and not is_portable(part):
            raise OutputError(
                f"The {flag[2:-4]} folder {folder} has {part!r}, {UNPORTABLE}: choose another with {flag}."
            )
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
    """Write a file atomically: ``write`` gets a temporary name with the same ending, which is then renamed.

    Raises:
        OutputError: the file cannot be written; an existing file is intact.
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
    """Yield a new, hidden folder to fill; it replaces ``folder`` at the end of the ``with`` block.

    If the block raises, or the new folder cannot be written to the disk, the existing folder stays.

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
    """Remove a folder atomically: it is hidden first."""
    hidden = _hidden(folder, "new")
    folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Remove the temporary files of a killed process from a folder, and restore replaced ones."""
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
    """Return a unique hidden name beside a path, for its new or its old version; see `tidy`."""
    return path.with_name(f".{secrets.token_hex(4)}-{kind}-{path.name}")


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk (fsync).

    Windows syncs no folders, and only files that are open for writing: a read-only file is not synced there.
    """
    folder = path.is_dir()
    if folder and ON_WINDOWS:
        return
    try:
        handle = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    except PermissionError:  # the copy of a read-only file
        if ON_WINDOWS:
            return
        handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        AdapterFileError: the file is missing, is no JSON object, or has a key twice.
    """
    try:
        return _parse_object(path.read_bytes(), path)
    except OSError as error:
        raise AdapterFileError(f"Cannot read {path}: {error.strerror or error}.") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file.

    Raises:
        AdapterFileError: the file is missing or damaged, has a tensor twice or a path as a name, or holds numbers that
            are not finite.
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
    """Whether all numbers are finite; a finite sum proves it quickly, and may only overflow."""
    return math.isfinite(tensor.sum(dtype=torch.float64).item()) or bool(tensor.isfinite().all())


def existing_part(path: Path) -> Path:
    """Return the nearest existing path: the path itself or a folder above."""
    return next(part for part in (path, *path.absolute().parents) if part.exists())


_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "Free space on the disk of {folder}, which has {free:,.1f} MB left"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "Make {folder} writable"),
    errno.EFBIG: "Raise the system's limit of file sizes (ulimit -f)",
}


def _unwritable(names: str, path: Path, error: OSError) -> OutputError:
    """Return an OutputError with the paths, the reason and a remedy."""
    folder = existing_part(path)
    remedy = _REMEDIES.get(error.errno or 0, "Check {folder}").format(
        folder=folder, free=shutil.disk_usage(folder).free / 1e6
    )
    return OutputError(
        f"Cannot write {names} ({error.strerror or error}); existing files are intact. {remedy}, or write elsewhere."
    )


def _parse_object(data: bytes, path: Path) -> dict[str, Any]:
    def refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if repeated := sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1):
            raise AdapterFileError(f"{path} has these keys more than once: {', '.join(repeated[:8])}.")
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
