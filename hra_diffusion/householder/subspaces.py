"""Reserved subspaces: columns U = P U within a subspace of a layer's inputs.

If the columns of two chains are orthogonal, the chains commute, and their updates of a weight add exactly:

    U_aᵀ U_b = 0   ⇒   H_a H_b = H_b H_a,   W H_a H_b − W = (W H_a − W) + (W H_b − W)

*Slots*: one orthonormal basis of the inputs, the same in every run and on every machine, is divided into n blocks of
d / n vectors, rounded. Slot i is the span of block i. The basis is a cosine transform (DCT-II) with random signs of
its rows and a random order of its columns, so that every vector mixes all inputs:

    B[j, k] = ± √(2 / d) cos(π (j + ½) k / d)        (√(1 / d) for k = 0)

It needs no factorization, and any block of it is computed alone.

*Complements*: the vectors orthogonal to the columns of given chains.

P = B Bᵀ − Q Qᵀ, with Q an orthonormal basis of the part of the given columns within the slot; without a slot,
P = I − Q Qᵀ.

Source: for the random basis, Ailon and Chazelle, "The fast Johnson–Lindenstrauss transform", 2009.
"""

import math
import random
import re
from dataclasses import dataclass
from typing import Final
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from hra_diffusion.errors import ConfigError
from hra_diffusion.householder.chain import unit_columns

_SLOT = re.compile(r"([1-9]\d{0,3})/([1-9]\d{0,3})")
_DEPENDENT = 1e-6
"""Singular values of unit columns below this are those of dependent columns."""


@dataclass(frozen=True)
class Slot:
    """Slot `index` of `count`, counted from 1."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Slot":
        """Parse "i/n".

        Raises:
            ConfigError: the text is not i/n with 1 ≤ i ≤ n and n ≥ 2.
        """
        match = _SLOT.fullmatch(text.strip())
        slot = cls(int(match[1]), int(match[2])) if match else None
        if slot is None or slot.index > slot.count or slot.count < 2:
            raise ConfigError(f"--slot is {text!r}: write i/n, such as 1/4 for the first of four slots.")
        return slot

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def block(self, d: int) -> tuple[int, int]:
        """Return the first vector of the slot in the basis of d inputs, and the one after its last."""
        return (self.index - 1) * d // self.count, self.index * d // self.count

    def overlaps(self, other: "Slot") -> bool:
        """Whether two slots can share vectors of the basis; if not, they share none for any d."""
        begins_before = (self.index - 1) * other.count < other.index * self.count
        return begins_before and (other.index - 1) * self.count < self.index * other.count


_MOST_BYTES: Final = 64 * 2**20
"""Memory of the bases that are kept without a subspace that uses them."""

_Key = tuple[int, Slot, torch.dtype]
_used: WeakValueDictionary[_Key, Tensor] = WeakValueDictionary()
_kept: dict[_Key, Tensor] = {}


def slot_basis(d: int, slot: Slot, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the orthonormal basis (d, k) of a slot, k = d / n rounded up or down, on the CPU.

    The signs and the order depend on d alone: they come from Python's generator, whose numbers are the same in every
    version and on every machine. A basis is computed once for all subspaces that use it at a time.
    """
    key = d, slot, dtype
    basis = _used.get(key)
    if basis is None:
        basis = _used[key] = _computed_basis(d, slot, dtype)
        _kept[key] = basis
        while sum(kept.nbytes for kept in _kept.values()) > _MOST_BYTES:
            del _kept[next(iter(_kept))]
    return basis


def _computed_basis(d: int, slot: Slot, dtype: torch.dtype) -> Tensor:
    # A text as the seed: Python promises the numbers of random() for it.
    generator = random.Random(f"hra_diffusion slots of {d} inputs")
    order = sorted(range(d), key=[generator.random() for _ in range(d)].__getitem__)
    signs = torch.tensor([1.0 if generator.random() < 0.5 else -1.0 for _ in range(d)], dtype=torch.float64)
    k = torch.tensor(order[slice(*slot.block(d))], dtype=torch.float64)
    # The angle's multiple of π is reduced exactly, in whole numbers, before the cosine.
    halves = torch.outer(2 * torch.arange(d, dtype=torch.float64) + 1, k).remainder(4 * d)
    waves = (halves * (math.pi / (2 * d))).cos() * math.sqrt(2 / d)
    return (signs.unsqueeze(1) * torch.where(k == 0, waves / math.sqrt(2), waves)).to(dtype)


def orthonormal_basis(columns: Tensor) -> Tensor:
    """Return an orthonormal basis (d, k) of the span of columns (d, r), in their dtype.

    Zero and dependent columns add nothing: k ≤ r.
    """
    X, sigma, _ = torch.linalg.svd(unit_columns(columns), full_matrices=False)
    return X[:, sigma > _DEPENDENT]


@dataclass(frozen=True)
class Subspace:
    """A subspace of a layer's d inputs: a slot, the complement of given columns, or both.

    Attributes:
        slot: an orthonormal basis (d, k) of the slot; None for all inputs.
        excluded: an orthonormal basis (d, m) of what is excluded, within the slot; None for nothing.
    """

    slot: Tensor | None = None
    excluded: Tensor | None = None

    @classmethod
    def make(cls, d: int, slot: Slot | None = None, others: Tensor | None = None) -> "Subspace":
        """Return the subspace of d inputs within a slot, orthogonal to columns (d, r) of others."""
        basis = None if slot is None else slot_basis(d, slot)
        if others is None:
            return cls(basis)
        columns = unit_columns(others.cpu().double())
        if slot is not None:
            wide = slot_basis(d, slot, torch.float64)
            columns = wide @ (wide.mT @ columns)
            columns = columns[:, torch.linalg.vector_norm(columns, dim=0) > _DEPENDENT]
        return cls(basis, orthonormal_basis(columns).float())

    def size(self, d: int) -> int:
        """Return the dimension of the subspace, of d inputs."""
        whole = d if self.slot is None else self.slot.shape[1]
        return whole - (0 if self.excluded is None else self.excluded.shape[1])

    def to(self, device: torch.device) -> "Subspace":
        """Return the subspace on a device."""
        return Subspace(*(None if basis is None else basis.to(device) for basis in (self.slot, self.excluded)))

    def project(self, U: Tensor) -> Tensor:
        """Return the orthogonal projection of columns U (d, r) onto the subspace."""
        if self.slot is not None:
            U = self.slot @ (self.slot.mT @ U)
        if self.excluded is not None:
            U = U - self.excluded @ (self.excluded.mT @ U)
        return U
