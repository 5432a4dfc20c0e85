"""The adapters of finished training jobs in the library, each added once."""

import logging
import threading
from pathlib import Path

from hra_diffusion.errors import ConfigError, HRAError, OutputError
from hra_diffusion.formats.files import write_file
from hra_diffusion.studio.engine.adapters.entry import Entry
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.training.job import IMPORTED, Job, Status

logger = logging.getLogger(__name__)


class FinishedJobs:
    """The jobs whose adapters are in a library; a file in a job's folder has its adapter's name."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._added: set[Path] = set()
        self._lock = threading.Lock()

    def add_adapter(self, job: Job) -> None:
        """Add the adapter of a job to the library, if it is finished and was not added before."""
        if job.status is not Status.FINISHED:
            return
        with self._lock:
            mark = job.folder / IMPORTED
            if job.folder in self._added or mark.exists():
                return
            try:
                entry = self._library.find_copy(job.folder) or self._library.add(
                    job.folder, self._library.free_name(job.name), job.thumbnail()
                )
            except HRAError:
                return  # the job reports its error
            self._added.add(job.folder)
            try:
                write_file(mark, lambda path: path.write_text(entry.name, encoding="utf-8"))
            except OutputError as error:
                logger.warning("%s", error)


def job_adapter(library: Library, job: Job) -> Entry:
    """Return the adapter of a finished job in the library.

    Raises:
        ConfigError: it was deleted there, or the job is not finished.
    """
    mark = job.folder / IMPORTED
    name = mark.read_text(encoding="utf-8") if mark.is_file() else ""
    entries = {entry.name: entry for entry in library.entries()}
    entry = entries.get(name) or (library.find_copy(job.folder) if job.status is Status.FINISHED else None)
    if entry is None:
        raise ConfigError(
            f"The adapter of the training job {job.name!r} is not in the library: choose one of its checkpoints."
        )
    return entry
