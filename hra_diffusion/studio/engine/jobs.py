"""Training runs: the command line in a process of its own, a folder each. All that is known of a run is on the disk.

So it does not matter who started it: a closed page, or a studio that is started again, finds it as it is.

    runs/dog/
    ├── images/, lesson.toml     what is taught
    ├── process.json, output.txt   the process, and what it said
    ├── stop.txt                   if it was asked to stop
    └── …                          what ``hra-diffusion train`` leaves in its output folder
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import psutil

from hra_diffusion.errors import AdapterFileError, BusyError, ConfigError
from hra_diffusion.formats.files import read_json, write_file
from hra_diffusion.studio.engine.library import check_name
from hra_diffusion.studio.engine.training_job import SETTINGS, TrainingJob
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import read_toml
from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.outputs.checkpoint import LOG
from hra_diffusion.training.outputs.log import read_log

PROCESS, OUTPUT, STOP = "process.json", "output.txt", "stop.txt"
_TAIL = 4000
_KILLED = (
    "It ended without a word: it was killed, or the memory was not enough. Go on takes it from its last checkpoint."
)


class Status(Enum):
    """How a run stands."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run as it is on the disk at this moment."""

    name: str
    folder: Path
    status: Status
    phase: str
    """What it does, in words."""
    done: int
    """Steps."""
    total: int
    seconds_left: float | None
    """Of the steps, where that can be told."""
    error: str | None
    """Why it failed."""

    @property
    def resumable(self) -> bool:
        """Whether it can go on: from its last checkpoint, or from the start if it has none yet."""
        return self.status in (Status.STOPPED, Status.FAILED)

    def records(self) -> list[StepRecord]:
        """Its steps so far."""
        return _records(self.folder)

    def samples(self) -> list[tuple[int, Path]]:
        """Images on the way, each with its step, the newest first."""
        found = [
            (int(path.parent.name.removeprefix("step-")), path) for path in self.folder.glob("validation/step-*/*.png")
        ]
        return sorted(((step, path) for step, path in found if not path.name.startswith(".")), reverse=True)

    def measured(self) -> str | None:
        """The table of numbers at the end; whoever reads it here need not know where the studio's folder is."""
        path = self.folder / "metrics.md"
        return path.read_text(encoding="utf-8").replace(f"{self.folder.parent}/", "") if path.is_file() else None


class Runs:
    """The runs in a folder; one at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._starting = threading.Lock()

    def all(self) -> list[Run]:
        """All runs, the one that was started last first."""
        places = [path.parent for path in self.folder.glob(f"*/{PROCESS}") if not path.parent.name.startswith(".")]
        return [self.get(place.name) for place in sorted(places, key=_started, reverse=True)]

    def get(self, name: str) -> Run:
        """Look at a run.

        Raises:
            ConfigError: there is none of this name.
        """
        folder = self.folder / check_name(name)
        if not (folder / PROCESS).is_file():
            raise ConfigError(f"There is no run named {name!r}.")
        config = read_toml(folder / SETTINGS, DreamBoothConfig())
        records, total = _records(folder), config.run.max_train_steps or 0
        done = records[-1].step if records else 0
        status, error = self._status(folder, done, total)
        return Run(
            name=name,
            folder=folder,
            status=status,
            phase=_phase(folder, config, status, done, total),
            done=done,
            total=total,
            seconds_left=_seconds_left(folder, done, total) if status is Status.RUNNING else None,
            error=error,
        )

    def running(self) -> Run | None:
        """The run that is going on, if any."""
        return next((run for run in self.all() if run.status is Status.RUNNING), None)

    def start(self, lesson: TrainingJob, base: str, default: DreamBoothConfig) -> Run:
        """Start a lesson.

        Raises:
            BusyError: another run is going on.
            ConfigError: the name is taken, or a setting cannot be.
            ImageError: an image cannot be used.
        """
        folder = self.folder.absolute() / check_name(lesson.name)
        with self._starting:
            self._check_idle()
            if folder.exists():
                raise ConfigError(f"There is a run named {lesson.name!r} already: choose another name.")
            lesson.write(folder, lesson.settings(base, default, folder))
            self._launch(folder)
        return self.get(folder.name)

    def resume(self, name: str) -> Run:
        """Let a run go on that was stopped, or failed; from the start if it has no checkpoint yet.

        Raises:
            BusyError: another run, or this one, is going on.
            ConfigError: there is no such run, or it is finished.
        """
        with self._starting:
            self._check_idle()
            run = self.get(name)
            if not run.resumable:
                raise ConfigError(f"{name!r} is finished: to teach more, begin another lesson.")
            self._launch(run.folder.absolute(), "--resume_from_checkpoint", "latest")
        return self.get(name)

    def stop(self, name: str) -> None:
        """Ask a run to stop after this step; it leaves a checkpoint.

        Raises:
            ConfigError: there is no such run.
        """
        folder = self.get(name).folder
        if process := _process(folder):
            (folder / STOP).touch()
            process.terminate()

    def estimate(self, lesson: TrainingJob, base: str, default: DreamBoothConfig, folder: Path) -> dict[str, str]:
        """Measure in two steps, taken back, what a lesson would cost.

        Args:
            lesson: what would be taught.
            base: the model.
            default: settings that fit it.
            folder: where images are put for that; to be removed afterwards.

        Returns:
            Lines of ``--dry_run`` by their label: time, memory, disk, …

        Raises:
            ConfigError: it would not run; the message says why.
        """
        lesson.write(folder, lesson.settings(base, default, folder))
        done = subprocess.run(_command(folder, "--dry_run"), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(_error(done.stderr) or "The lesson cannot be measured.")
        return {line[:10].strip(): line[10:].strip() for line in done.stdout.splitlines()}

    def _check_idle(self) -> None:
        if going := self.running():
            raise BusyError(f"{going.name!r} is being taught ({going.phase}): stop it, or wait until it is done.")

    def _launch(self, folder: Path, *flags: str) -> None:
        (folder / STOP).unlink(missing_ok=True)
        with (folder / OUTPUT).open("wb") as output:
            child = subprocess.Popen(
                _command(folder, *flags), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._children[folder.name] = child
        about = {"pid": child.pid, "created": psutil.Process(child.pid).create_time(), "started": time.time()}
        write_file(folder / PROCESS, lambda path: path.write_text(json.dumps(about), encoding="utf-8"))

    def _status(self, folder: Path, done: int, total: int) -> tuple[Status, str | None]:
        if child := self._children.get(folder.name):
            child.poll()  # or it stays behind as a zombie
        if _process(folder):
            return Status.RUNNING, None
        if done >= total and (folder / "adapter").is_dir():
            return Status.FINISHED, None
        said = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace") if (folder / OUTPUT).is_file() else ""
        if error := _error(said):
            return Status.FAILED, error
        stopped = (folder / STOP).exists() or "Stopped after step" in said
        return (Status.STOPPED, None) if stopped else (Status.FAILED, _KILLED)


def _command(folder: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "hra_diffusion.cli.main", "train", "--config", str(folder / SETTINGS), *flags]


def _process(folder: Path) -> psutil.Process | None:
    """Return a run's process while it lives: its id alone might be another's by now."""
    try:
        about = read_json(folder / PROCESS)
        process = psutil.Process(int(about["pid"]))
        same = abs(process.create_time() - float(about["created"])) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, AdapterFileError, KeyError, TypeError, ValueError):
        return None


def _started(folder: Path) -> float:
    return os.path.getmtime(folder / PROCESS)


def _error(said: str) -> str | None:
    """Return the error that a command ended with: its last line says so."""
    last = next(reversed(said.strip().splitlines()), "")
    found = re.fullmatch(r"[\w.]*Error: (.+)", last)
    return found[1][:_TAIL] if found else None


def _records(folder: Path) -> list[StepRecord]:
    try:
        return read_log(folder / LOG)
    except (OSError, ValueError):  # not begun yet, or the last line is being written
        return []


def _phase(folder: Path, config: DreamBoothConfig, status: Status, done: int, total: int) -> str:
    if status is not Status.RUNNING:
        return status.value
    drawn = len(list((folder / "class_images").glob("[!.]*.png")))
    if done == 0 and config.prior.with_prior_preservation and drawn < config.prior.num_class_images:
        return f"drawing the class: {drawn} of {config.prior.num_class_images} images" if drawn else "reading the model"
    if done == 0:
        return "getting ready"
    if done < total:
        return f"step {done} of {total}"
    return "measuring what was learned" if (folder / "before_after.png").exists() else "drawing before and after"


def _seconds_left(folder: Path, done: int, total: int) -> float | None:
    """Tell it from the time since the log began."""
    if not done:
        return None
    started = os.path.getmtime(folder / "config.toml")
    return max(0.0, (os.path.getmtime(folder / LOG) - started) / done * (total - done))
