"""Runs that are killed at a given moment: a program, since only a process that has not trained itself can be forked.

Orders come as lines of JSON: ``[config file, event, delay]``. Each is run in a process of its own, which counts what it
does to files of its output folder, and its steps, as events. ``delay`` seconds after the given event it is killed with
SIGKILL; without a delay it kills itself, at that very event. The answer is a line: the number of events, and whether it
was killed.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import read_toml
from hra_diffusion.training.dreambooth import DreamBooth

FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def train(config: DreamBoothConfig, events: int, last: int | None) -> None:
    folder = str(config.run.output_dir)
    count = 0

    def happened() -> None:
        nonlocal count
        count += 1
        os.write(events, b".")
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple) -> None:
        if event in FILE_EVENTS and str(arguments[0]).startswith(folder):
            happened()

    run = DreamBooth(config)
    sys.addaudithook(watch)
    for _ in run.steps():
        happened()
    run.save()


def killed(config: DreamBoothConfig, event: int | None, delay: float) -> tuple[int, bool]:
    """Run in a process of its own; returns the number of events, and whether it was killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        train(config, write, None if delay else event)
        os._exit(0)
    os.close(write)
    count = 0
    while os.read(read, 1):
        count += 1
        if count == event and delay:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            break
    os.close(read)
    _, status = os.waitpid(child, 0)
    return count, os.WIFSIGNALED(status)


if __name__ == "__main__":
    for line in sys.stdin:
        path, event, delay = json.loads(line)
        print(json.dumps(killed(read_toml(Path(path), DreamBoothConfig()), event, delay)), flush=True)
