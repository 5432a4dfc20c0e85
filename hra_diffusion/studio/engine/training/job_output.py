"""The output and the memory of a training job's process."""

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from hra_diffusion.studio.engine.training.job import OUTPUT
from hra_diffusion.studio.engine.training.processes import running_process

_BYTES = 65_536
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LONGEST = 400


def log_tail(folder: Path, lines: int = 40) -> list[str]:
    """Return the last lines of a job's output; of a progress bar, its last state."""
    file = folder / OUTPUT
    if not file.is_file():
        return []
    with file.open("rb") as output:
        output.seek(max(0, file.stat().st_size - _BYTES))
        text = output.read().decode("utf-8", "replace")
    last = [_ESCAPES.sub("", line.rstrip("\r").rpartition("\r")[2]).rstrip() for line in text.split("\n")]
    return [line[:_LONGEST] for line in last if line][-lines:]


@dataclass(frozen=True, kw_only=True)
class JobMemory:
    """Memory in use, in bytes."""

    process: int
    """Memory of the job's process and its children."""
    device: tuple[int, int] | None
    """Used and total memory of the GPU, by all processes; None without CUDA."""


def job_memory(folder: Path) -> JobMemory | None:
    """Return the memory of a job's process; None if it is not running."""
    process = running_process(folder)
    if process is None:
        return None
    try:
        memory = sum(member.memory_info().rss for member in (process, *process.children(recursive=True)))
    except psutil.Error:  # a process has just ended
        return None
    return JobMemory(process=memory, device=_device_memory())


def _device_memory() -> tuple[int, int] | None:
    import torch  # a list of jobs does without

    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free, total
