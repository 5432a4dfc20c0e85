"""Processes of training jobs: their command, their environment, their end."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.reading import read_json
from hra_diffusion.studio.engine.config import AUTH_VARIABLE
from hra_diffusion.studio.engine.training.training_job import is_control, settings_file

PROCESS = "process.json"
"""File of a job with the id of its process."""


def train_command(folder: Path, *flags: str) -> list[str]:
    """Return the command that trains a job."""
    command = "train-control" if is_control(folder) else "train"
    return [sys.executable, "-m", "hra_diffusion.cli.main", command, "--config", str(settings_file(folder)), *flags]


def job_environment() -> dict[str, str]:
    """Return the environment of a job: without the studio's password, and with UTF-8, since its output is read here."""
    return {name: value for name, value in os.environ.items() if name != AUTH_VARIABLE} | {"PYTHONIOENCODING": "utf-8"}


def process_group() -> dict[str, Any]:
    """Return arguments of Popen for a process that the signals of the studio's terminal do not reach."""
    if hasattr(signal, "CTRL_BREAK_EVENT"):  # on Windows
        return {"creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP")}  # noqa: B009
    return {"start_new_session": True}


def request_checkpoint(process: psutil.Process) -> None:
    """Send the signal for stopping a run with a checkpoint: on Windows an event of the common console.

    A process of another console, as after a restart of the studio, is ended: it resumes from its last checkpoint.
    """
    with suppress(psutil.NoSuchProcess):  # the job has just ended
        try:
            process.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
        except (OSError, SystemError):
            process.terminate()


def running_process(folder: Path) -> psutil.Process | None:
    """Return the process of a running job; the time of creation excludes a reused process id."""
    try:
        recorded = read_json(folder / PROCESS)
        process = psutil.Process(int(recorded["pid"]))
        same = abs(process.create_time() - float(recorded["created"])) < 1
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, AdapterFileError, KeyError, TypeError, ValueError, OverflowError):
        return None
