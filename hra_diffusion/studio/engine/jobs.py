"""Training jobs: one folder and one ``hra-diffusion train`` process per job.

The folder holds the complete state of a job: a reopened page or a restarted studio finds every job again.

    runs/dog/
    ├── images/, job.toml          images and settings
    ├── process.json, output.txt   the process and its output
    ├── stop.txt                   after a request to stop
    └── …                          the output folder of ``hra-diffusion train``
"""

import json
import os
import re
import subprocess
import threading
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import psutil

from hra_diffusion.errors import BusyError, ConfigError, HRAError
from hra_diffusion.formats.files import remove_folder, replacing, write_file, writing
from hra_diffusion.formats.reading import check_regular, reading
from hra_diffusion.studio.engine.library import check_name
from hra_diffusion.studio.engine.processes import (
    PROCESS,
    job_environment,
    process_group,
    request_checkpoint,
    running_process,
    train_command,
)
from hra_diffusion.studio.engine.training_job import TrainingJob, settings_file
from hra_diffusion.text import is_utf8
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import read_toml
from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.outputs.checkpoint import LOG
from hra_diffusion.training.outputs.log import read_log

OUTPUT, STOP = "output.txt", "stop.txt"
_MAX_CHARACTERS = 4000
_KILLED = (
    "The process ended without an error message: it was killed, or the memory was exhausted. Resume continues from the "
    "last checkpoint."
)


class Status(Enum):
    """The status of a job."""

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

    def metrics_table(self) -> str | None:
        """Return the final metrics as a Markdown table, without the path of the studio's folder."""
        path = self.folder / "metrics.md"
        if not path.is_file():
            return None
        return path.read_text(encoding="utf-8", errors="replace").replace(f"{self.folder.parent}{os.sep}", "")


class TrainingJobs:
    """The jobs of a folder; at most one is running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._starting = threading.Lock()

    def all(self) -> list[Job]:
        """Return all jobs, the most recently started first; those with damaged files are unreadable."""
        folders = sorted(self._folders().items(), key=lambda item: _start_time(item[1]), reverse=True)
        return [_read_job(name, folder) for name, folder in folders]

    def get(self, name: str) -> Job:
        """Return a job by name.

        Raises:
            ConfigError: the name is unknown.
        """
        folders = self._folders()
        if not isinstance(name, str) or name not in folders:
            raise ConfigError(f"There is no training job named {str(name)[:80]!r}.")
        return _read_job(name, folders[name])

    def _folders(self) -> dict[str, Path]:
        """Return the folders of all jobs by name; other characters than UTF-8's are escaped."""
        for child in self._children.values():
            child.poll()  # reaps a zombie process
        paths = [path for path in self.folder.glob("*") if path.is_dir() and not path.name.startswith(".")]
        return {path.name if is_utf8(path.name) else ascii(path.name)[1:-1]: path for path in paths}

    def running(self) -> Job | None:
        """Return the running job, or None."""
        return next((job for job in self.all() if job.status is Status.RUNNING), None)

    def start(self, job: TrainingJob, base: str, default: DreamBoothConfig) -> Job:
        """Start a job.

        Raises:
            BusyError: another job is running.
            ConfigError: the name is taken, or a setting is invalid.
            ImageError: an image cannot be read or cropped.
            OutputError: the files cannot be written, or the process cannot be started.
        """
        folder = self.folder.absolute() / check_name(job.name)
        with self._starting:
            self._check_none_running()
            if folder.exists():
                raise ConfigError(f"There is a training job named {job.name!r} already: choose another name.")
            with replacing(folder) as new:
                job.write(new, job.config(base, default, folder))
            try:
                self._launch(folder)
            except BaseException:
                remove_folder(folder)
                raise
        return self.get(folder.name)

    def resume(self, name: str) -> Job:
        """Resume a stopped or failed job, from its last checkpoint or from the start.

        Raises:
            BusyError: this or another job is running.
            ConfigError: the name is unknown, or the job is finished.
        """
        with self._starting:
            self._check_none_running()
            job = self.get(name)
            if not job.resumable:
                raise ConfigError(f"The training job {name!r} is {job.status.value}: start a new one.")
            self._launch(job.folder.absolute(), "--resume_from_checkpoint", "latest")
        return self.get(name)

    def stop(self, name: str) -> None:
        """Stop a job after the current step, with a checkpoint.

        Raises:
            ConfigError: the name is unknown.
        """
        folder = self.get(name).folder
        if process := running_process(folder):
            (folder / STOP).touch()
            request_checkpoint(process)

    def delete(self, name: str) -> None:
        """Delete the folder of a job, with its images and checkpoints.

        Raises:
            BusyError: the job is running.
            ConfigError: the name is unknown.
            OutputError: the folder cannot be removed.
        """
        with self._starting:
            folder = self.get(name).folder
            if running_process(folder):
                raise BusyError(f"The training job {name!r} is running: stop it first.")
            remove_folder(folder)

    def dry_run(self, job: TrainingJob, base: str, default: DreamBoothConfig, folder: Path) -> dict[str, str]:
        """Measure the time and memory of a job in two training steps.

        Args:
            job: the job.
            base: the model.
            default: the base's default settings.
            folder: a temporary folder for the images; the caller removes it.

        Returns:
            Lines of ``--dry_run`` by label: time, memory, disk, …

        Raises:
            ConfigError: the job cannot run, for the reason in the message.
        """
        job.write(folder, job.config(base, default, folder))
        done = subprocess.run(
            train_command(folder, "--dry_run"),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=job_environment(),
            check=False,
        )
        if done.returncode:
            raise ConfigError(_error(done.stderr) or "The dry run failed without an error message.")
        return {line[:10].strip(): line[10:].strip() for line in done.stdout.splitlines()}

    def _check_none_running(self) -> None:
        if running := self.running():
            raise BusyError(
                f"The training job {running.name!r} is running ({running.phase}): stop it, or wait for its end."
            )

    def _launch(self, folder: Path, *flags: str) -> None:
        (folder / STOP).unlink(missing_ok=True)
        with writing(folder), (folder / OUTPUT).open("wb") as output:
            child: subprocess.Popen[bytes] = subprocess.Popen(  # pyright: ignore[reportAssignmentType]
                train_command(folder, *flags),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=job_environment(),
                **process_group(),
            )
        self._children[folder.name] = child
        process = {"pid": child.pid, "created": psutil.Process(child.pid).create_time(), "started": time.time()}
        try:
            write_file(folder / PROCESS, lambda path: path.write_text(json.dumps(process), encoding="utf-8"))
        except BaseException:  # a process that nobody could find and stop
            child.kill()
            child.wait()
            raise


def _read_job(name: str, folder: Path) -> Job:
    """Return the snapshot of a job's folder."""
    try:
        with reading(folder):
            settings = settings_file(folder)
            check_regular(settings)
            config = read_toml(settings, DreamBoothConfig())
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
    if step >= total_steps and (folder / "adapter").is_dir():
        return Status.FINISHED, None
    file = folder / OUTPUT
    output = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    if error := _error(output):
        return Status.FAILED, error
    stopped = (folder / STOP).exists() or "Stopped after step" in output
    return (Status.STOPPED, None) if stopped else (Status.FAILED, _KILLED)


def _start_time(folder: Path) -> float:
    return next((path.stat().st_mtime for path in (folder / PROCESS, folder) if path.exists()), 0.0)


def _error(output: str) -> str | None:
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


def _phase(folder: Path, config: DreamBoothConfig, status: Status, step: int, total_steps: int) -> str:
    if status is not Status.RUNNING:
        return status.value
    finished = len(list((folder / "class_images").glob("[!.]*.png")))
    total = config.prior.num_class_images
    if step == 0 and config.prior.with_prior_preservation and finished < total:
        return f"generating class images: {finished} of {total}" if finished else "loading the model"
    if step == 0:
        return "preparing the training"
    if step < total_steps:
        return f"step {step} of {total_steps}"
    return "evaluating the adapter" if (folder / "before_after.png").exists() else "generating before and after images"


def _seconds_left(folder: Path, step: int, total_steps: int) -> float | None:
    """Estimate the remaining time from the age of the log, in seconds."""
    if not step:
        return None
    started = os.path.getmtime(folder / "config.toml")
    return max(0.0, (os.path.getmtime(folder / LOG) - started) / step * (total_steps - step))
