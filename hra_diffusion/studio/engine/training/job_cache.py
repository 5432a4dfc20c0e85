"""Snapshots of ended jobs, read again only after a change to their files: a list of many jobs stays fast."""

from pathlib import Path

from hra_diffusion.studio.engine.training.job import OUTPUT, STOP, Job, Status, read_job
from hra_diffusion.studio.engine.training.job_queue import QUEUED
from hra_diffusion.studio.engine.training.processes import PROCESS, running_process
from hra_diffusion.studio.engine.training.training_job import settings_file
from hra_diffusion.training.outputs.checkpoint import LOG

_FILES = (LOG, OUTPUT, STOP, PROCESS, QUEUED, "adapter", "config.toml")


class JobCache:
    """Snapshots of jobs by name and folder."""

    def __init__(self) -> None:
        self._jobs: dict[Path, tuple[object, Job]] = {}

    def read(self, name: str, folder: Path) -> Job:
        """Return the snapshot of a job's folder; that of a running job is always new."""
        if running_process(folder):
            return read_job(name, folder)
        stamp = name, _stamp(folder)
        stored = self._jobs.get(folder)
        if stored and stored[0] == stamp:
            return stored[1]
        job = read_job(name, folder)
        if job.status is not Status.RUNNING:
            self._jobs[folder] = stamp, job
        return job


def _stamp(folder: Path) -> list[tuple[int, int] | None]:
    """Return time of change and size of the files that determine a job's status."""
    stamps: list[tuple[int, int] | None] = []
    for path in (settings_file(folder), *(folder / name for name in _FILES)):
        try:
            status = path.stat()
            stamps.append((status.st_mtime_ns, status.st_size))
        except OSError:
            stamps.append(None)
    return stamps
