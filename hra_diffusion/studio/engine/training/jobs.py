"""Training jobs: one folder and one ``hra-diffusion train`` process per job.

The folder holds the complete state of a job: a reopened page or a restarted studio finds every job again.

    runs/dog/
    ├── images/, job.toml          images and settings
    ├── process.json, output.txt   the process and its output
    ├── stop.txt                   after a request to stop
    ├── queued.json                while it is in the queue
    └── …                          the output folder of ``hra-diffusion train``
"""

import json
import logging
import subprocess
import threading
import time
from pathlib import Path

import psutil

from hra_diffusion.errors import BusyError, ConfigError, OutputError
from hra_diffusion.formats.files import remove_folder, replacing, sync, write_file, writing
from hra_diffusion.studio.engine.adapters.entry import check_name
from hra_diffusion.studio.engine.setting_error import SettingError
from hra_diffusion.studio.engine.training.job import (
    OUTPUT,
    STOP,
    Job,
    Status,
    error_of_output,
    read_job,
    start_time,
)
from hra_diffusion.studio.engine.training.job_cache import JobCache
from hra_diffusion.studio.engine.training.job_queue import QueueWatcher, add_to_queue, queue_time, remove_from_queue
from hra_diffusion.studio.engine.training.job_settings import moved_settings
from hra_diffusion.studio.engine.training.processes import (
    PROCESS,
    job_environment,
    process_group,
    request_checkpoint,
    running_process,
    train_command,
)
from hra_diffusion.studio.engine.training.training_job import TrainingJob, check_setting_name
from hra_diffusion.text import is_utf8
from hra_diffusion.training.config import TrainingConfig

logger = logging.getLogger(__name__)


class TrainingJobs:
    """The jobs of a folder; at most one is running, the others wait in a queue."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._starting = threading.Lock()
        self._cache = JobCache()
        self._queue = QueueWatcher(self._start_next)

    def all(self) -> list[Job]:
        """Return all jobs, the most recently started first; those with damaged files are unreadable."""
        return [self._cache.read(name, folder) for name, folder in self._newest_first()]

    def names(self) -> list[str]:
        """Return the names of all jobs, the most recently started first."""
        return [name for name, _ in self._newest_first()]

    def queue(self) -> list[str]:
        """Return the names of the queued jobs, the next one first."""
        times = {name: time for name, folder in self._folders().items() if (time := queue_time(folder)) is not None}
        return sorted(times, key=lambda name: times[name])

    def get(self, name: str) -> Job:
        """Return a job by name.

        Raises:
            ConfigError: the name is unknown.
        """
        folders = self._folders()
        if not isinstance(name, str) or name not in folders:
            raise ConfigError(f"There is no training job named {str(name)[:80]!r}.")
        return read_job(name, folders[name])

    def _newest_first(self) -> list[tuple[str, Path]]:
        return sorted(self._folders().items(), key=lambda item: start_time(item[1]), reverse=True)

    def _folders(self) -> dict[str, Path]:
        """Return the folders of all jobs by name; other characters than UTF-8's are escaped."""
        for child in self._children.values():
            child.poll()  # reaps a zombie process
        paths = [path for path in self.folder.glob("*") if path.is_dir() and not path.name.startswith(".")]
        return {path.name if is_utf8(path.name) else ascii(path.name)[1:-1]: path for path in paths}

    def running(self) -> Job | None:
        """Return the running job, or None."""
        jobs = (read_job(name, folder) for name, folder in self._folders().items() if running_process(folder))
        return next((job for job in jobs if job.status is Status.RUNNING), None)

    def watch_queue(self) -> None:
        """Start the queued jobs one after the other, in a thread."""
        self._queue.watch()

    def start(self, job: TrainingJob, base: str, default: TrainingConfig) -> Job:
        """Start a job, or add it to the queue while another job is running.

        Raises:
            ConfigError: the name is taken, or a setting is invalid.
            ImageError: an image cannot be read or cropped.
            OutputError: the files cannot be written, or the process cannot be started.
        """
        folder = self.folder.absolute() / check_name(job.name)
        with self._starting:
            if folder.exists():
                raise SettingError("name", f"{job.name!r} is taken by a training job: choose another name.")
            with replacing(folder) as new:
                job.write(new, job.config(base, default, folder))
            try:
                self._launch_or_queue(folder)
            except BaseException:
                remove_folder(folder)
                raise
        return self.get(folder.name)

    def resume(self, name: str) -> Job:
        """Resume a stopped or failed job, from its last checkpoint or from the start; queued as in `start`.

        Raises:
            ConfigError: the name is unknown, or the job is running, queued or finished.
        """
        with self._starting:
            job = self.get(name)
            if not job.resumable:
                raise ConfigError(f"The training job {name!r} is {job.status.value}: start a new one.")
            self._launch_or_queue(job.folder.absolute())
        return self.get(name)

    def stop(self, name: str) -> None:
        """Stop a job after the current step, with a checkpoint, or remove it from the queue.

        Raises:
            ConfigError: the name is unknown.
        """
        with self._starting:
            folder = self.get(name).folder
            if remove_from_queue(folder):
                (folder / STOP).touch()
        if process := running_process(folder):
            (folder / STOP).touch()
            request_checkpoint(process)

    def rename(self, name: str, new_name: str) -> Job:
        """Rename a job that is not running: its folder, and the paths in its settings.

        Raises:
            BusyError: the job is running.
            ConfigError: the name is unknown, or the new name is taken or invalid.
            OutputError: the settings cannot be written; the job keeps its name.
        """
        with self._starting:
            folder = self._stopped_folder(name).absolute()
            target = folder.with_name(check_setting_name("new_name", new_name))
            if target.exists():
                raise SettingError("new_name", f"{target.name!r} is taken by a training job: choose another name.")
            settings = moved_settings(folder, target)
            with writing(target):
                folder.rename(target)
            try:
                for path, text in settings.items():
                    write_file(path, lambda file, t=text: file.write_text(t, encoding="utf-8"))
            except BaseException:
                target.rename(folder)
                raise
            sync(self.folder)
        return self.get(target.name)

    def delete(self, name: str) -> None:
        """Delete the folder of a job, with its images and checkpoints.

        Raises:
            BusyError: the job is running.
            ConfigError: the name is unknown.
            OutputError: the folder cannot be removed.
        """
        with self._starting:
            remove_folder(self._stopped_folder(name))

    def dry_run(self, job: TrainingJob, base: str, default: TrainingConfig, folder: Path) -> dict[str, str]:
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
            raise ConfigError(error_of_output(done.stderr) or "The dry run failed without an error message.")
        return {line[:10].strip(): line[10:].strip() for line in done.stdout.splitlines()}

    def _stopped_folder(self, name: str) -> Path:
        """Return the folder of a job; raise BusyError while it runs, and ConfigError for an unknown name."""
        folder = self.get(name).folder
        if running_process(folder):
            raise BusyError(f"The training job {name!r} is running: stop it first.")
        return folder

    def _launch_or_queue(self, folder: Path) -> None:
        if not (self.running() or self.queue()):
            return self._launch(folder, *_resume_flags(folder))
        (folder / STOP).unlink(missing_ok=True)
        add_to_queue(folder)
        return self._queue.watch()

    def _start_next(self) -> bool:
        """Start the next job of the queue unless one is running; return whether the queue has a job."""
        with self._starting:
            queue = self.queue()
            if queue and not self.running():
                folder = self._folders()[queue[0]].absolute()
                remove_from_queue(folder)
                try:
                    self._launch(folder, *_resume_flags(folder))
                except OutputError as error:  # the job has failed, and can be resumed
                    logger.warning("The training job %r is not started: %s", queue[0], error)
            return bool(queue)

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


def _resume_flags(folder: Path) -> tuple[str, ...]:
    """Return the flags that resume a job; a job without a process so far has none."""
    return ("--resume_from_checkpoint", "latest") if (folder / PROCESS).exists() else ()
