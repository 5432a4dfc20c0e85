"""Layers of original codes that hold several of diffusers' layers: their LoRAs become one, exactly, and back.

    [B₁ A₁]   [B₁ 0 ] [A₁]
    [B₂ A₂] = [0  B₂] [A₂]

Three of rank r become one of rank 3 r.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.lora.names import ModuleKey, diffusers_name
from hra_diffusion.formats.lora.updates import Update

_ENDS: Final = {".lora_up.weight": ".lora_down.weight", ".lora_B.weight": ".lora_A.weight"}
"""Ends of the names of B, with those of A."""


def fuse(
    updates: Iterable[Update], names: Mapping[ModuleKey, str], widths: Mapping[ModuleKey, int]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the factors A and B of updates by name; modules of one name are fused in the order of the names.

    Args:
        updates: updates of modules.
        names: a name for every module.
        widths: number of rows of the weights of modules that share a name; those without an update are zero.
    """
    by_key = {(update.component, update.module): update for update in updates}
    members = modules_by_name(names)
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for name in dict.fromkeys(names[key] for key in by_key):
        keys = members[name]
        present = [by_key[key] for key in keys if key in by_key]
        A, B = present[0].A, present[0].B
        if len(keys) > 1:
            A = torch.cat([update.A for update in present])
            B = torch.block_diag(*(by_key[key].B if key in by_key else B.new_zeros(widths[key], 0) for key in keys))
        factors[name] = A, B
    return factors


def split_fused(
    path: Path,
    tensors: Mapping[str, Tensor],
    fused: Mapping[str, Sequence[ModuleKey]],
    widths: Mapping[ModuleKey, int],
) -> dict[str, Tensor]:
    """Return a LoRA's tensors with one LoRA for each module of a fused layer, by diffusers' names.

    Rows of A without effect on a module are left out.

    Args:
        path: the tensors' file, for messages.
        tensors: tensors by name.
        fused: the modules of every fused layer, by all its names, in the order of their rows.
        widths: number of rows of the modules' weights.

    Raises:
        AdapterFileError: a fused layer has another number of rows.
    """
    result = dict(tensors)
    for up, down in _ENDS.items():
        for name in [key.removesuffix(up) for key in tensors if key.endswith(up)]:
            if name not in fused or name + down not in tensors:
                continue
            B, A, alpha = result.pop(name + up), result.pop(name + down), result.pop(f"{name}.alpha", None)
            sizes = [widths[key] for key in fused[name]]
            if len(B) != sum(sizes):
                raise AdapterFileError(
                    f"{path} is for another model: its update of {name} has {len(B)} rows instead of {sum(sizes)}."
                )
            for key, rows in zip(fused[name], B.split(sizes), strict=True):
                used, module = rows.any(0), diffusers_name(*key)
                used[0] |= not used.any()
                result |= {module + up: rows[:, used], module + down: A[used]}
                if alpha is not None:
                    result[f"{module}.alpha"] = alpha.float() * used.sum() / len(A)
    return result


def swap_halves(rows: Tensor) -> Tensor:
    """Return a tensor with the halves of its rows swapped: scale and shift become shift and scale."""
    return torch.cat(rows.chunk(2)[::-1])


def unswap(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """Return a LoRA's tensors with the halves of B's rows swapped for the layers of some names."""
    ends = {name + up for name in names for up in _ENDS}
    return {key: swap_halves(tensor) if key in ends else tensor for key, tensor in tensors.items()}


def modules_by_name(names: Mapping[ModuleKey, str]) -> dict[str, list[ModuleKey]]:
    """Return the modules of every name, in order."""
    members: dict[str, list[ModuleKey]] = {}
    for key, name in names.items():
        members.setdefault(name, []).append(key)
    return members
