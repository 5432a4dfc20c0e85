"""The adapter of a training job in the library, and its checkpoints as further ones."""

import shutil
from pathlib import Path
from typing import Any

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.files import temporary_folder
from hra_diffusion.formats.run_folder import run_file
from hra_diffusion.studio.engine.adapters.library import Entry, Library
from hra_diffusion.studio.engine.training.job import IMPORTED, Job, Status
from hra_diffusion.training.outputs.checkpoint import checkpoints


def checkpoint_steps(job: Job) -> list[int]:
    """Return the steps whose checkpoints a job has, the newest first."""
    return sorted((_step(path) for path in checkpoints(job.folder)), reverse=True)


def add_checkpoint(library: Library, job: Job, step: Any) -> Entry:
    """Add the adapter of a checkpoint to the library, with the settings of its run, under a free name.

    Args:
        library: the library.
        job: the job.
        step: the checkpoint's step.

    Raises:
        ConfigError: the job has no checkpoint of this step.
        AdapterFileError: the adapter is damaged.
        OutputError: the copy cannot be written.
    """
    folders = {_step(path): path for path in checkpoints(job.folder)}
    folder = folders.get(step) if isinstance(step, int) else None
    if folder is None:
        known = ", ".join(map(str, sorted(folders))) or "none"
        raise ConfigError(
            f"The training job {job.name!r} has no checkpoint of step {str(step)[:20]}; known are: {known}."
        )
    settings = run_file(job.folder, "config.toml")
    with temporary_folder(library.folder) as temporary:
        source = temporary / "adapter"
        shutil.copytree(folder / "adapter", source)
        if settings:
            shutil.copyfile(settings, source / settings.name)
        name = library.free_name(f"{job.name[:48].rstrip()} step {step}")
        return library.add(source, name, job.thumbnail(step))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


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
