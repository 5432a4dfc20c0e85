"""The checkpoints of a training job as adapters of the library."""

import shutil
from pathlib import Path
from typing import Any

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.files import temporary_folder
from hra_diffusion.formats.run_folder import run_file
from hra_diffusion.studio.engine.adapters.entry import Entry
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.training.job import Job
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
