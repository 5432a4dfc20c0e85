"""Stacked factors of a mixed batch: one product reflects all rows, whatever their adapters."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hra_diffusion.adapter.mixture import Mixture
from hra_diffusion.householder.compact_wy import full_precision
from hra_diffusion.householder.factoring import Factors


class Stack(NamedTuple):
    """The factors of the chains of all rows, H = I − U T Uᵀ, with zeros for rows of the base model.

    Attributes:
        U: the columns, of shape (rows, d, r).
        forward: the parts of −T, transposed, of shape (rows, r or 2 r, r); see `Factors`.
    """

    U: Tensor
    forward: Tensor

    def reflect(self, x: Tensor) -> Tensor:
        """Return H x for x (rows, tokens, d); rows of the base model as they are."""
        with full_precision(x.device):
            z = torch.bmm(x, self.U)
            parts = self.forward.shape[1] // self.U.shape[2]
            return torch.baddbmm(x, torch.bmm(torch.cat([z] * parts, dim=-1), self.forward), self.U.mT)


def stack_factors(
    chains: Mapping[Mixture, Factors | None], groups: Mapping[Mixture, Tensor], x: Tensor
) -> Stack | None:
    """Return the factors of the rows of x (rows, tokens, d), with zeros up to the largest rank; None without any."""
    present = {mixture: chain for mixture, chain in chains.items() if chain is not None}
    if not present:
        return None
    rank = max(chain.U.shape[1] for chain in present.values())
    parts = max(chain.forward.shape[1] // chain.U.shape[1] for chain in present.values())
    U = x.new_zeros(len(x), x.shape[-1], rank)
    forward = x.new_zeros(len(x), parts, rank, rank)
    for mixture, chain in present.items():
        index, r = groups[mixture], chain.U.shape[1]
        U[index, :, :r] = chain.U.to(x.dtype)
        forward[index, :, :r, :r] = chain.forward.mT.unflatten(0, (parts, r)).to(x.dtype)
    return Stack(U, forward.flatten(1, 2))
