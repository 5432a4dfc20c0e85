"""A program that kills runs at given moments; only a process without training of its own can be forked.

Orders are lines of JSON: ``[config file, event, delay]``. Each run has a separate process, which counts its file
operations in the output folder and its steps as events. It is killed with SIGKILL ``delay`` seconds after the given
event; without a delay it kills itself at this event. The answer is a line of JSON: the number of events, and whether
the run was killed.
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
from hra_diffusion.training.prepare import prepare_run

FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def train(config: DreamBoothConfig, events: int, last: int | None) -> None:
    folder = str(config.run.output_dir)
    count = 0

    def count_event() -> None:
        nonlocal count
        count += 1
        os.write(events, b".")
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple) -> None:
        if event in FILE_EVENTS and str(arguments[0]).startswith(folder):
            count_event()

    run = prepare_run(DreamBooth(config))
    sys.addaudithook(watch)
    for _ in run.steps():
        count_event()
    run.save()


def killed(config: DreamBoothConfig, event: int | None, delay: float) -> tuple[int, bool]:
    """Run in a separate process; returns the number of events, and whether the run was killed."""
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
