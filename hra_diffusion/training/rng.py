"""Named random streams: all random numbers of a run are functions of (seed, name, index).

No state is saved or restored: step 300 samples the same numbers after an interruption, and after any other sampling.
Generators are on the CPU, so that the numbers are the same on every device.

A stream's name decides its numbers: a renamed stream would change every run, so the names never change.
"""

import hashlib
from functools import lru_cache

import torch


def stream(seed: int, name: str, index: int = 0) -> torch.Generator:
    """Return a new CPU generator, seeded by the name and index of a stream."""
    digest = hashlib.blake2b(f"{seed}/{name}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def endless_shuffle(seed: int, name: str, size: int, start: int, count: int) -> list[int]:
    """Return items ``start`` … ``start + count − 1`` of an endless sequence of shuffled ``range(size)``.

    Each epoch has another order.
    """
    items: list[int] = []
    while len(items) < count:
        epoch, position = divmod(start + len(items), size)
        items += _order(seed, name, size, epoch)[position : position + count - len(items)]
    return items


@lru_cache(maxsize=16)
def _order(seed: int, name: str, size: int, epoch: int) -> list[int]:
    """Shuffle ``range(size)`` for an epoch; consecutive batches share the cached order."""
    return torch.randperm(size, generator=stream(seed, name, epoch)).tolist()
