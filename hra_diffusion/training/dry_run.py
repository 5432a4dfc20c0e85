"""A dry run: what would be trained, its time, memory and disk space. Nothing is written.

Time and memory are measured in two real steps, which are undone.
"""

import re
import sys
import time
from datetime import timedelta
from pathlib import Path

import psutil
import torch
from torch import nn

from hra_diffusion.model import HRAModel
from hra_diffusion.training.loop.trainer import trained_count
from hra_diffusion.training.run import Run


def describe(run: Run) -> str:
    """Describe a run in lines of text, after two steps that are undone."""
    ends = [time.perf_counter(), *(time.perf_counter() for _ in run.dry_run_steps(2))]
    before, step = ends[1] - ends[0], ends[2] - ends[1]  # the first step includes the encoding of the images
    steps = run.plan.total_steps - run.plan.initial_global_step
    lines = [
        *run.task.inputs(),
        *(("trains", _component(name, module)) for name, module in run.trained_modules.items()),
        ("steps", f"{steps:,} of {run.plan.total_steps:,}, each of {run.images_per_step} images"),
        ("time", f"{step:.2f} s a step, {timedelta(seconds=round(step * steps))} in all, and {before:.0f} s before"),
        ("memory", f"{peak_memory() / 1e9:.2f} GB at most in two steps; generating images may take more"),
        ("disk", run.check_disk_space()),
    ]
    return "\n".join(f"{label:<10}{text}" for label, text in lines)


def peak_memory() -> float:
    """Return the peak memory so far in bytes: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands ru_maxrss down from the parent process
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0]) * 1024
    memory = psutil.Process().memory_info()
    try:
        import resource
    except ImportError:  # on Windows
        return getattr(memory, "peak_wset", memory.rss)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _component(name: str, module: nn.Module) -> str:
    if not isinstance(module, HRAModel):
        return f"{name}: {trained_count(module):,} parameters"
    trained, total = module.get_nb_trainable_parameters()
    ranks = ", ".join(map(str, sorted({config.r for config in module.peft_config.values()})))
    return f"{name}: {trained:,} parameters of {total:,}, {len(module.layers())} layers of rank {ranks}"
