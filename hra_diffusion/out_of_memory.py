"""Out of memory: one sentence with the flags that help, in place of torch's."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate.utils.memory import should_reduce_batch_size

from hra_diffusion.errors import OutOfMemoryError


@contextmanager
def explain_out_of_memory(phase: str, remedies: Callable[[], Iterable[str]]) -> Iterator[None]:
    """Name the flags that help if a device or the machine runs out of memory within a ``with`` block.

    Args:
        phase: what needs the memory: "training", "encoding the images".
        remedies: returns flags with values, the most useful first.

    Raises:
        OutOfMemoryError: the memory does not suffice.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        first, *others = list(remedies()) or ["a smaller size"]
        further = f"; or else {', '.join(others)}" if others else ""
        raise OutOfMemoryError(f"Out of memory while {phase}{_usage()}: add {first}{further}.") from error


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error)
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or should_reduce_batch_size(error)
    return known or "MPS backend out of memory" in text


def _usage() -> str:
    """Describe the memory of the GPU in use, if there is one."""
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    return f" on {name} ({total / 1e9:.1f} GB, {free / 1e9:.1f} GB of it free for this process)"
