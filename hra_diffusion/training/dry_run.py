"""A dry run: what would be trained, its time, memory and disk space. Nothing is written.

Time and memory are measured in two real steps, which are undone; the memory on a GPU is predicted.
"""

import re
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import groupby
from pathlib import Path

import psutil
import torch
from torch import nn

from hra_diffusion.model import HRAModel
from hra_diffusion.pipelines.bases import PRECISIONS
from hra_diffusion.training.data.cache import Cache
from hra_diffusion.training.devices.memory_format import memory_format
from hra_diffusion.training.devices.memory_prediction import PhaseMemory, predict_memory
from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.loop.trainer import Trainer, trained_count
from hra_diffusion.training.run import Run


def describe(run: Run) -> str:
    """Describe a run in lines of text, after two steps that are undone."""
    start = time.perf_counter()
    trainer = run.build_trainer(Cache(None))
    ends = [time.perf_counter() for _ in undone_steps(run, trainer, 2)]
    before, step = ends[0] - start, ends[1] - ends[0]  # the first step includes the encoding of the images
    measured = peak_memory()
    steps = run.plan.total_steps - run.plan.initial_global_step
    lines = [
        *run.task.inputs(),
        *(("trains", _component(name, module)) for name, module in run.trained_modules.items()),
        ("steps", f"{steps:,} of {run.plan.total_steps:,}, each of {run.images_per_step} images"),
        ("time", f"{step:.2f} s a step, {timedelta(seconds=round(step * steps))} in all, and {before:.0f} s before"),
        ("memory", f"{measured / 1e9:.2f} GB at most in two steps; generating images may take more"),
        *(("on a GPU", line) for line in describe_memory(_predicted(run, trainer))),
        ("disk", run.check_disk_space()),
    ]
    return "\n".join(f"{label:<10}{text}" for label, text in lines)


def undone_steps(run: Run, trainer: Trainer, count: int) -> Iterator[StepRecord]:
    """Take the first steps of a run and undo them; nothing is written."""
    before = [weight.detach().clone() for weight in trainer.weights.values()]
    try:
        with memory_format(run.family.model, torch.channels_last):
            yield from trainer.steps(count)
    finally:
        with torch.no_grad():
            for weight, value in zip(trainer.weights.values(), before, strict=True):
                weight.copy_(value)


def describe_memory(phases: list[PhaseMemory]) -> Iterator[str]:
    """Describe the predicted memory in a line for each phase, and its maximum."""
    for phase, components in groupby(phases, lambda component: component.phase):
        parts = (
            f"{part.component} {_gigabytes(part.peak)} ({_gigabytes(part.weights)} weights)" for part in components
        )
        yield f"{phase}: {', '.join(parts)}"
    peak = max(component.peak for component in phases)
    yield f"{_gigabytes(peak)} at most, predicted; the driver and its libraries need 0.5 to 1 GB more"


def _predicted(run: Run, trainer: Trainer) -> list[PhaseMemory]:
    moments = 1 if run.config.optimizer.optimizer in ("lion", "adafactor") else 2
    return predict_memory(
        run.task.denoiser(run.family),
        run.family,
        max((trainer.batch_at(index).inputs for index in range(32)), key=lambda inputs: inputs["latents"].numel()),
        precision=PRECISIONS[run.config.run.mixed_precision],
        copies_of_trained_weights=1 + moments + run.config.optimizer.use_ema,
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


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
    widths = {columns.shape[1] for layer in module.adapted_layers().values() for columns in layer.hra_u.values()}
    ranks = ", ".join(map(str, sorted(widths)))
    return f"{name}: {trained:,} parameters of {total:,}, {len(module.adapted_layers())} layers of rank {ranks}"
