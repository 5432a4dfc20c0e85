"""A training job as its folder describes it: status, progress, losses and validation images."""

import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from hra_diffusion.errors import HRAError
from hra_diffusion.formats.reading import check_regular, reading
from hra_diffusion.formats.run_folder import SHEET, TABLE
from hra_diffusion.studio.engine.training.job_queue import queue_time
from hra_diffusion.studio.engine.training.processes import PROCESS, running_process
from hra_diffusion.studio.engine.training.training_job import read_settings
from hra_diffusion.training.config import DreamBoothConfig, TrainingConfig
from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.outputs.checkpoint import LOG
from hra_diffusion.training.outputs.log import read_log

OUTPUT, STOP = "output.txt", "stop.txt"
IMPORTED = "adopted.txt"
"""Marks a job whose adapter is in the library; holds its name there."""
_MAX_CHARACTERS = 4000
_KILLED = (
    "The process ended without an error message: it was killed, or the memory was exhausted. Resume continues from the "
    "last checkpoint."
)


class Status(Enum):
    """The status of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A snapshot of a job's folder."""

    name: str
    folder: Path
    status: Status
    phase: str
    """Description of the current activity."""
    step: int
    """Completed steps."""
    total_steps: int
    seconds_left: float | None
    """Estimate for the remaining steps, where one is possible."""
    error: str | None
    """The error of a failed job, or the reason why a job is unreadable."""

    @property
    def resumable(self) -> bool:
        """Whether the job can resume, from its last checkpoint or from the start."""
        return self.status in (Status.STOPPED, Status.FAILED)

    def records(self) -> list[StepRecord]:
        """Return the log records of the completed steps."""
        return [] if self.status is Status.UNREADABLE else _records(self.folder)

    def validation_images(self) -> list[tuple[int, Path]]:
        """Return the validation images with their steps, the newest first."""
        images = [
            (int(step), path)
            for path in self.folder.glob("validation/step-*/*.png")
            if (step := path.parent.name.removeprefix("step-")).isdecimal()
        ]
        return sorted(((step, path) for step, path in images if not path.name.startswith(".")), reverse=True)

    def thumbnail(self, last_step: int | None = None) -> Path | None:
        """Return the validation image of the last step that displays the subject; of any prompt without one.

        Args:
            last_step: images of later steps are left out.
        """
        images = [(step, path) for step, path in self.validation_images() if last_step is None or step <= last_step]
        try:
            config = read_settings(self.folder)
            prompt = (config.data.instance_prompt or "") if isinstance(config, DreamBoothConfig) else ""
        except HRAError:
            prompt = ""
        newest = [path for step, path in images if step == images[0][0]]
        return next((path for path in newest if _has_prompt(path, prompt)), next(iter(newest), None))

    def metrics_table(self) -> str | None:
        """Return the final metrics as a Markdown table, without the path of the studio's folder."""
        path = self.folder / TABLE
        if not path.is_file():
            return None
        return path.read_text(encoding="utf-8", errors="replace").replace(f"{self.folder.parent}{os.sep}", "")


def read_job(name: str, folder: Path) -> Job:
    """Return the snapshot of a job's folder."""
    try:
        with reading(folder):
            config = read_settings(folder)
            records, total_steps = _records(folder), config.run.max_train_steps or 0
            step = records[-1].step if records else 0
            status, error = _status(folder, step, total_steps)
            return Job(
                name=name,
                folder=folder,
                status=status,
                phase=_phase(folder, config, status, step, total_steps),
                step=step,
                total_steps=total_steps,
                seconds_left=_seconds_left(folder, step, total_steps) if status is Status.RUNNING else None,
                error=error,
            )
    except HRAError as error:
        status = Status.RUNNING if running_process(folder) else Status.UNREADABLE
        return Job(
            name=name,
            folder=folder,
            status=status,
            phase=status.value,
            step=0,
            total_steps=0,
            seconds_left=None,
            error=str(error)[:_MAX_CHARACTERS],
        )


def _status(folder: Path, step: int, total_steps: int) -> tuple[Status, str | None]:
    if running_process(folder):
        return Status.RUNNING, None
    if queue_time(folder) is not None:
        return Status.QUEUED, None
    if step >= total_steps and (folder / "adapter").is_dir():
        return Status.FINISHED, None
    file = folder / OUTPUT
    output = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if error := error_of_output(output):
        return Status.FAILED, error
    stopped = (folder / STOP).exists() or "Stopped after step" in output
    return (Status.STOPPED, None) if stopped else (Status.FAILED, _KILLED)


def start_time(folder: Path) -> float:
    """Return the time of a job's last start, in seconds since the epoch."""
    return next((path.stat().st_mtime for path in (folder / PROCESS, folder) if path.exists()), 0.0)


def error_of_output(output: str) -> str | None:
    """Return the error on the last line of a command's output, or None."""
    last = next(reversed(output.strip().splitlines()), "")
    error = re.fullmatch(r"[\w.]*Error: (.+)", last)
    return error[1][:_MAX_CHARACTERS] if error else None


def _records(folder: Path) -> list[StepRecord]:
    file = folder / LOG
    if not file.exists():
        return []
    check_regular(file)
    with reading(file):
        return read_log(file)


def _phase(folder: Path, config: TrainingConfig, status: Status, step: int, total_steps: int) -> str:
    if status is not Status.RUNNING:
        return status.value
    if step == 0 and isinstance(config, DreamBoothConfig) and config.prior.with_prior_preservation:
        finished, total = len(list((folder / "class_images").glob("[!.]*.png"))), config.prior.num_class_images
        if finished < total:
            return f"generating class images: {finished} of {total}" if finished else "loading the model"
    if step == 0:
        return "preparing the training"
    if step < total_steps:
        return f"step {step} of {total_steps}"
    return "evaluating the adapter" if (folder / SHEET).exists() else "generating before and after images"


def _seconds_left(folder: Path, step: int, total_steps: int) -> float | None:
    """Estimate the remaining time from the age of the log, in seconds."""
    if not step:
        return None
    started = os.path.getmtime(folder / "config.toml")
    return max(0.0, (os.path.getmtime(folder / LOG) - started) / step * (total_steps - step))


def _has_prompt(image: Path, prompt: str) -> bool:
    """Whether a validation image has a prompt, by its file name."""
    from hra_diffusion.pipelines.models import image_name  # imports torch, which a list of jobs does without

    seed = image.stem.rpartition("-")[2]
    return seed.isdecimal() and image.name == image_name(prompt, int(seed))
