"""Random numbers as a function of a name: every draw of a run has its own generator, seeded by (seed, what, which).

No state has to be saved or restored: step 300 draws the same whether the run was interrupted before it or not, and
whatever else draws in between. Draws happen on the CPU, so they are the same on every device.
"""

import hashlib
from functools import lru_cache

import torch


def stream(seed: int, what: str, which: int = 0) -> torch.Generator:
    """Return a fresh CPU generator that belongs to this name alone."""
    digest = hashlib.blake2b(f"{seed}/{what}/{which}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def endless_shuffle(seed: int, what: str, size: int, start: int, count: int) -> list[int]:
    """Return items ``start`` … ``start + count − 1`` of an endless shuffle of ``range(size)``, anew in each pass."""
    picks: list[int] = []
    while len(picks) < count:
        epoch, position = divmod(start + len(picks), size)
        picks += _order(seed, what, size, epoch)[position : position + count - len(picks)]
    return picks


@lru_cache(maxsize=16)
def _order(seed: int, what: str, size: int, epoch: int) -> list[int]:
    """Shuffle ``range(size)`` for a pass; neighboring batches are of one."""
    return torch.randperm(size, generator=stream(seed, what, epoch)).tolist()
