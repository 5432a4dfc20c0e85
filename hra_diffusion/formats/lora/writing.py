"""Tensors and files of updates of one rank, in every layout."""

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Final, Literal, get_args

import torch
from safetensors.torch import save
from torch import Tensor

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.lora.dora import (
    KOHYA_MAGNITUDE,
    PEFT_MAGNITUDE,
    fused_magnitude,
    kohya_magnitude,
    peft_magnitude,
)
from hra_diffusion.formats.lora.fusing import fuse, modules_by_name, swap_halves
from hra_diffusion.formats.lora.names import ModuleKey, diffusers_name
from hra_diffusion.formats.lora.updates import Update
from hra_diffusion.formats.peft import PREFIX
from hra_diffusion.formats.tensors import tensors_file

Layout = Literal["kohya", "diffusers", "peft"]
LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)


def kohya_tensors(
    updates: list[Update],
    dtype: torch.dtype,
    names: Mapping[ModuleKey, str],
    widths: Mapping[ModuleKey, int] | None = None,
    swapped: Collection[ModuleKey] = (),
) -> dict[str, Tensor]:
    """Return an adapter's updates, of one rank, by kohya's names.

    Args:
        updates: updates of modules.
        dtype: precision of the tensors.
        names: kohya's names; modules with one name are one layer.
        widths: number of rows of the weights of such modules.
        swapped: modules whose rows' halves are swapped in such files.

    Raises:
        ConfigError: kohya has no name for a layer.
    """
    for update in updates:
        if (update.component, update.module) not in names:
            raise ConfigError(
                f"kohya's layout has no name for the layer {update.module} of a {update.component}: use --layout "
                "diffusers."
            )
    magnitudes = {(update.component, update.module): update.magnitude for update in updates}
    members = modules_by_name(names)
    tensors: dict[str, Tensor] = {}
    for name, (A, B) in fuse(updates, names, widths or {}).items():
        M = fused_magnitude(name, [magnitudes.get(key) for key in members[name]])
        if members[name][0] in swapped:
            B, M = swap_halves(B), None if M is None else swap_halves(M)
        tensors[f"{name}.lora_down.weight"] = A.to(dtype).contiguous()
        tensors[f"{name}.lora_up.weight"] = B.to(dtype).contiguous()
        tensors[f"{name}.alpha"] = torch.tensor(float(len(A)), dtype=dtype)
        if M is not None:
            tensors[f"{name}{KOHYA_MAGNITUDE}"] = kohya_magnitude(M, B).to(dtype).contiguous()
    return tensors


def diffusers_tensors(updates: list[Update], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return an adapter's updates, of one rank, by diffusers' names."""
    return {
        f"{diffusers_name(update.component, update.module)}{end}": tensor
        for update in updates
        for end, tensor in _peft_tensors(update, dtype, f"{PEFT_MAGNITUDE}.weight").items()
    }


def peft_files(
    updates: list[Update], dtype: torch.dtype, base_model: str | None, metadata: Mapping[str, str]
) -> dict[str, bytes]:
    """Return PEFT's two files of every component, by path."""
    files: dict[str, bytes] = {}
    for component in dict.fromkeys(update.component for update in updates):
        members = [update for update in updates if update.component == component]
        tensors = {
            f"{PREFIX}{update.module}{end}": tensor
            for update in members
            for end, tensor in _peft_tensors(update, dtype, PEFT_MAGNITUDE).items()
        }
        config = {
            "peft_type": "LORA",
            "r": len(members[0].A),
            "lora_alpha": len(members[0].A),
            "use_dora": any(update.magnitude is not None for update in members),
            "target_modules": [update.module for update in members],
            "base_model_name_or_path": base_model,
            "inference_mode": True,
        }
        files[f"{component}/adapter_model.safetensors"] = tensors_file(tensors, {**metadata, "format": "pt"})
        files[f"{component}/adapter_config.json"] = json.dumps(config, indent=2).encode()
    return files


def _peft_tensors(update: Update, dtype: torch.dtype, magnitude: str) -> dict[str, Tensor]:
    """Return an update's tensors by the ends of PEFT's names; `magnitude` is that of a DoRA's magnitude."""
    tensors = {".lora_A.weight": update.A, ".lora_B.weight": update.B}
    if update.magnitude is not None:
        tensors[magnitude] = peft_magnitude(update.magnitude, update.B)
    return {end: tensor.to(dtype).contiguous() for end, tensor in tensors.items()}


def file_bytes(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file with a hash of its tensors in the metadata keys of kohya and ModelSpec."""
    content = save(tensors)
    digest = hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
    hashes = {"modelspec.hash_sha256": f"0x{digest}", "sshs_model_hash": digest}
    return tensors_file(tensors, {**metadata, **hashes, "format": "pt"})
