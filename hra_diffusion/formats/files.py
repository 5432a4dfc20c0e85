"""Atomic writing of files and folders."""

import errno
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import psutil
from safetensors import SafetensorError

from hra_diffusion.errors import OutputError

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
    earlier = {path: _hidden(path, "old") for path in contents if len(contents) > 1 and path.exists()}
    renamed: list[Path] = []
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary[path].open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path, hidden in earlier.items():
            with suppress(OSError):  # a file system without hard links
                os.link(path, hidden)
        for path, hidden in temporary.items():
            hidden.replace(path)
            renamed.append(path)
        for folder in {path.parent for path in contents}:
            sync(folder)
    except OSError as error:
        for path in renamed:
            with suppress(OSError):
                if path in earlier:
                    earlier[path].replace(path)
                else:
                    path.unlink()
        raise _unwritable(", ".join(map(str, contents)), next(iter(contents)), error) from error
    finally:
        for hidden in (*temporary.values(), *earlier.values()):
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
    except SafetensorError as error:  # it has the system's error as a text
        number = re.search(r"\(os error (\d{1,4})\)|\bcode: (\d{1,4})\b", str(error))
        code = int(number[1] or number[2]) if number else None
        cause = OSError(str(error)) if code is None else OSError(code, os.strerror(code))
        raise _unwritable(str(path), path, cause) from error


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
    """Remove a folder atomically: it is hidden first.

    Raises:
        OutputError: it cannot be removed; it is unchanged.
    """
    hidden = _hidden(folder, "new")
    with writing(folder):
        folder.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def temporary_folder(parent: Path) -> Generator[Path]:
    """Yield a new, hidden folder, which is removed at the end of the ``with`` block."""
    folder = _hidden(parent / "folder", "new")
    with writing(folder):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def tidy(folder: Path, name: str | None = None) -> None:
    """Remove the temporary files that ended processes left in a folder, and restore replaced ones.

    Args:
        folder: the folder.
        name: the name of the file or folder whose temporary files are meant; all by default.
    """
    for path in folder.glob(".*") if folder.is_dir() else ():
        if not (leftover := _LEFTOVER.fullmatch(path.name)) or _is_alive(leftover["pid"]):
            continue
        target = leftover["name"] or ""
        if name not in (None, target):
            continue
        with suppress(OSError):  # of another user, for example
            if leftover["kind"] == "old" and not (folder / target).exists():
                path.rename(folder / target)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


# Temporary names: with the process's id; without it, of version 0.1, whose imports had names of their own.
_LEFTOVER = re.compile(r"\.((?P<pid>[0-9a-f]+)-)?[0-9a-f]{8}-(?P<kind>new|old)-(?P<name>.+)|\.import-\w+", re.DOTALL)


def _is_alive(pid: str | None) -> bool:
    """Whether another process, by its id in hexadecimal digits, may still use its temporary files."""
    return pid is not None and int(pid, 16) != os.getpid() and psutil.pid_exists(int(pid, 16))


def _hidden(path: Path, kind: Literal["new", "old"]) -> Path:
    """Return a unique hidden name beside a path, for its new or its old version; see `tidy`."""
    return path.with_name(f".{os.getpid():x}-{secrets.token_hex(4)}-{kind}-{path.name}")


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
