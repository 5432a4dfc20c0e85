"""Before a run: what would be trained, what it costs, and whether there is room; found out without writing anything.

Time and memory are not computed but measured, in two real steps that are taken back afterwards.
"""

import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hra_diffusion.adapter.model import HRAModel
from hra_diffusion.errors import OutputError
from hra_diffusion.formats.files import existing_part
from hra_diffusion.training.data.crops import covering_size
from hra_diffusion.training.loop.trainer import trained_count

if TYPE_CHECKING:
    from hra_diffusion.training.data.subjects import Example
    from hra_diffusion.training.run import Run

SHOWN = 40
"""Images that are listed."""


def check_disk_space(folder: Path, steps: range, trained: int, *, copies: int, every: int, limit: int | None) -> str:
    """Make sure that a run's checkpoints fit on the disk; returns a line about it.

    Args:
        folder: the run's.
        steps: the steps to take, counted from 0.
        trained: bytes of what is trained.
        copies: how many numbers a checkpoint has for each that trains.
        every: steps between checkpoints.
        limit: how many are kept, all if None.

    Raises:
        OutputError: they do not fit.
    """
    count = sum((step + 1) % every == 0 or step + 1 == steps.stop for step in steps)
    at_once = min(count, limit + 1) if limit else count  # an old one goes when the new one is there
    size = trained * copies / 1e6
    free = shutil.disk_usage(existing_part(folder)).free / 1e6
    if at_once * size > free:
        raise OutputError(
            f"{at_once} checkpoints of {size:,.1f} MB do not fit on the disk of {folder}, which has {free:,.1f} MB "
            "left: make room, keep fewer (--checkpoints_total_limit, --checkpointing_steps), or choose another "
            "--output_dir."
        )
    return f"{count} checkpoints of {size:,.1f} MB, {at_once} at once, in {folder}; {free:,.0f} MB are free there"


def describe(run: "Run") -> str:
    """Say in some lines what a run would do, after two steps that are taken back."""
    ends = [time.perf_counter(), *(time.perf_counter() for _ in run.rehearse(2))]
    before, step = ends[1] - ends[0], ends[2] - ends[1]  # the first step also encodes the images
    left = run.total_steps - run.initial_global_step
    lines = [
        *run.material(),
        *(("trains", _component(name, part)) for name, part in run.parts.items()),
        ("steps", f"{left:,} of {run.total_steps:,}, each of {run.images_per_step} images"),
        ("time", f"{step:.2f} s a step, {timedelta(seconds=round(step * left))} in all, and {before:.0f} s before"),
        ("memory", f"{peak_memory() / 1e9:.2f} GB at most in two steps; drawing images may take more"),
        ("disk", run.check_disk_space()),
    ]
    return "\n".join(f"{label:<10}{text}" for label, text in lines)


def peak_memory() -> float:
    """Most bytes that were in use so far: on the GPU where there is one, else by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux hands ru_maxrss down from the process that started this one
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def describe_images(
    examples: "Sequence[Example]", sizes: Sequence[tuple[int, int]], center_crop: bool
) -> Iterator[str]:
    """Say what becomes of each image, a line each; of many, of the first."""
    pairs = list(zip(examples, sizes, strict=True))
    for example, size in pairs[:SHOWN]:
        own = example.photo.size
        scale = max(side / before for side, before in zip(size, own, strict=True))
        whole = covering_size(own, size) == size
        crops = "whole" if whole else "its middle" if center_crop else "its middle and both ends"
        enlarged = f", enlarged {scale:.1f}×" if scale > 1 else ""
        times = f", {example.repeats} times a pass" if example.repeats > 1 else ""
        scaled = f"{own[0]}×{own[1]} → {size[0]}×{size[1]}"
        yield f'{example.photo.path.name}: {scaled}, {crops}{enlarged}{times}, "{example.caption}"'
    if pairs[SHOWN:]:
        yield f"and {len(pairs) - SHOWN} more"


def describe_class_images(images: Any) -> str:
    """Say which images of a class there are to be, in a line."""
    missing = sum(not path.exists() for path in images.files)
    drawn = f", of which {missing} are to be drawn first, which takes time of its own" if missing else ""
    return f'"{images.prompt}": {images.count} images in {images.folder}{drawn}'


def _component(name: str, part: nn.Module) -> str:
    if not isinstance(part, HRAModel):
        return f"{name}: {trained_count(part):,} parameters"
    trained, total = part.get_nb_trainable_parameters()
    ranks = sorted({config.r for config in part.peft_config.values()})
    return (
        f"{name}: {trained:,} parameters of {total:,}, {len(part.layers())} layers of rank {', '.join(map(str, ranks))}"
    )
