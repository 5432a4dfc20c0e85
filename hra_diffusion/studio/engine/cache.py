"""The cache of the studio: uploads and downloads of browsers, removed after a day."""

import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

DAY = 86_400
_HOUR = 3600


def new_folder(folder: Path) -> Path:
    """Make a new, uniquely named folder inside a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=folder))


def remove_old_files(cache: Path) -> None:
    """Remove files older than a day: pages keep them over a restart, and killed processes leave them behind."""
    for path in sorted(cache.rglob("*"), reverse=True):  # files before their folder
        with suppress(OSError):  # a folder with files
            if path.is_dir():
                path.rmdir()
            elif time.time() - path.lstat().st_ctime > DAY:
                path.unlink()


def remove_old_files_hourly(cache: Path) -> None:
    """Start a thread that removes old files every hour."""

    def clean() -> None:
        while True:
            time.sleep(_HOUR)
            remove_old_files(cache)

    threading.Thread(target=clean, daemon=True, name="cache").start()
