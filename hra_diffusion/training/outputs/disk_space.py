"""Disk space for a run's checkpoints."""

import shutil
from pathlib import Path

from hra_diffusion.errors import OutputError
from hra_diffusion.formats.files import existing_part


def check_disk_space(folder: Path, steps: range, trained: int, *, copies: int, every: int, limit: int | None) -> str:
    """Check that a run's checkpoints fit on the disk, and return a line about them.

    Args:
        folder: the output folder.
        steps: the steps to take, counted from 0.
        trained: bytes of the trained parameters.
        copies: numbers in a checkpoint for each trained parameter.
        every: steps between checkpoints.
        limit: checkpoints to keep; all if None.

    Raises:
        OutputError: they do not fit.
    """
    count = sum((step + 1) % every == 0 or step + 1 == steps.stop for step in steps)
    at_once = min(count, limit + 1) if limit else count  # an old one is removed after a new one is saved
    size = trained * copies / 1e6
    free = shutil.disk_usage(existing_part(folder)).free / 1e6
    if at_once * size > free:
        raise OutputError(
            f"{at_once} checkpoints of {size:,.1f} MB do not fit on the disk of {folder}, which has {free:,.1f} MB "
            "left: make room, keep fewer (--checkpoints_total_limit, --checkpointing_steps), or choose another "
            "--output_dir."
        )
    return f"{count} checkpoints of {size:,.1f} MB, {at_once} at once, in {folder}; {free:,.0f} MB are free there"
