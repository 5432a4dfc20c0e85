"""The queue of training jobs: a file in the folder of each queued job holds the time at which it was added.

So the queue survives a restart of the studio, and a job that is renamed or deleted keeps or leaves its place.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.files import write_file
from hra_diffusion.formats.reading import read_json

logger = logging.getLogger(__name__)

QUEUED = "queued.json"
_INTERVAL = 1.0
"""Seconds between two looks at the running job."""


def add_to_queue(folder: Path) -> None:
    """Add a job to the end of the queue.

    Raises:
        OutputError: the file cannot be written.
    """
    text = json.dumps({"queued": time.time_ns()})
    write_file(folder / QUEUED, lambda path: path.write_text(text, encoding="utf-8"))


def remove_from_queue(folder: Path) -> bool:
    """Remove a job from the queue; return False for a job outside of the queue."""
    was_queued = (folder / QUEUED).exists()
    (folder / QUEUED).unlink(missing_ok=True)
    return was_queued


def queue_time(folder: Path) -> int | None:
    """Return the time at which a job was added, in nanoseconds since the epoch; None outside of the queue."""
    if not (folder / QUEUED).is_file():
        return None
    try:
        return int(read_json(folder / QUEUED)["queued"])
    except (AdapterFileError, KeyError, TypeError, ValueError, OverflowError):  # a damaged file: first in the queue
        return 0


class QueueWatcher:
    """A thread that starts the next job of the queue when the running one has ended.

    Args:
        start_next: starts the next job if none is running; returns whether the queue has, or had, a job.
    """

    def __init__(self, start_next: Callable[[], bool]) -> None:
        self._start_next = start_next
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self) -> None:
        """Watch the queue until it is empty."""
        self._wake.set()
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="job queue")
                self._thread.start()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()  # before the look at the queue: a job that is added later sets it again
            while self._next():
                time.sleep(_INTERVAL)

    def _next(self) -> bool:
        try:
            return self._start_next()
        except Exception:
            logger.exception("The next training job of the queue cannot be started.")
            return True
