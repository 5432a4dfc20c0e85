"""The lock of a run's folder: a file that names the process at work there, so that two runs never mix in one folder.

A lock is stale if its process has ended; on another host, nobody can tell from here.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from hra_diffusion.errors import OutputError
from hra_diffusion.formats.files import writing

LOCK = "run.lock"


@dataclass(frozen=True)
class _Holder:
    """The process of a lock."""

    pid: int
    host: str
    started: float
    """Start of the process, in seconds since 1970: process ids are used again."""

    @property
    def has_ended(self) -> bool:
        """Whether the process was of this host and has ended."""
        if self.host != socket.gethostname():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > 2
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder within a ``with`` block; a process may take its own lock again.

    Raises:
        OutputError: another process holds it, or the folder cannot be written.
    """
    path, this = folder / LOCK, _this_process()
    check_unlocked(folder)
    is_held, is_new = _read(path) == this, not folder.exists()
    if not is_held:
        _take(path, this)
    try:
        yield
    finally:
        if not is_held and _read(path) == this:
            with suppress(OSError):
                path.unlink()
                if is_new:
                    folder.rmdir()  # only if the run has written nothing


def check_unlocked(folder: Path) -> None:
    """Check that no other process is at work in a run's folder.

    Raises:
        OutputError: one is, or may be.
    """
    path = folder / LOCK
    if not path.exists():
        return
    holder = _read(path)
    if holder and (holder.has_ended or holder == _this_process()):
        return
    if holder:
        since = datetime.fromtimestamp(holder.started).strftime("%Y-%m-%d %H:%M")
        who = f"process {holder.pid} on {holder.host}, started at {since}"
    else:
        who = "an unknown process"
    raise OutputError(
        f"Another run is in progress in {folder} ({who}): choose another --output_dir, or wait until it has ended. If "
        f"it has ended already, delete {path}."
    )


def _take(path: Path, holder: _Holder) -> None:
    """Create the lock; of several processes that try, one succeeds."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if (stale := _read(path)) and stale.has_ended:
            path.unlink(missing_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            check_unlocked(path.parent)
            raise
        try:
            os.write(handle, json.dumps(asdict(holder)).encode())
        finally:
            os.close(handle)


def _read(path: Path) -> _Holder | None:
    """Return the process of a lock; None without a lock, or for a damaged one."""
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
        return _Holder(int(values["pid"]), str(values["host"]), float(values["started"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _this_process() -> _Holder:
    return _Holder(os.getpid(), socket.gethostname(), psutil.Process().create_time())
