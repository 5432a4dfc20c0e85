"""Factors of a LoRA's layers, from tensors by their names."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from hra_diffusion.adapter.config import CONFIG_FILE
from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.lora.names import ModuleKey
from hra_diffusion.formats.lora.peft_config import LoraScaling
from hra_diffusion.formats.peft import PREFIX
from hra_diffusion.text import shorten


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A LoRA's factors of one layer, W + B A.

    Attributes:
        A: (r, d), unfolded.
        B: (out, r), unfolded, times the scale alpha / r.
    """

    A: Tensor
    B: Tensor


# Parts of a layer by the ends of their tensors' names: those of kohya, of diffusers and PEFT, of diffusers before it
# used PEFT, and of its attention processors.
_PARTS: Final = {
    ".lora_down.weight": "A",
    ".lora_up.weight": "B",
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora.down.weight": "A",
    ".lora.up.weight": "B",
    ".lora_linear_layer.down.weight": "A",
    ".lora_linear_layer.up.weight": "B",
    ".down.weight": "A",
    ".up.weight": "B",
    ".alpha": "alpha",
}


def factors_of(
    path: Path, tensors: Mapping[str, Tensor], names: Mapping[str, ModuleKey], scalings: Mapping[str, LoraScaling]
) -> dict[ModuleKey, Factors]:
    """Return the factors of all layers among tensors.

    Args:
        path: the tensors' file, for messages.
        tensors: tensors by name.
        names: all known names of every module.
        scalings: scaling of layers without an alpha of their own, by component; the default scale is 1.

    Raises:
        AdapterFileError: a tensor belongs to no module, or a layer has odd or incomplete factors.
    """
    layers: dict[ModuleKey, dict[str, Tensor]] = {}
    spellings: dict[ModuleKey, str] = {}
    unknown: list[str] = []
    for key, tensor in sorted(tensors.items()):
        name, part = split_key(key)
        if name not in names or not part:
            unknown.append(key)
            continue
        parts = layers.setdefault(names[name], {})
        if part in parts and not torch.equal(parts[part], tensor):
            raise AdapterFileError(f"{path} has two different updates of {name}: another is {spellings[names[name]]}.")
        parts[part], spellings[names[name]] = tensor, name
    if unknown or not layers:
        alone = any(name.startswith(PREFIX) for name in unknown) and not (path.parent / CONFIG_FILE).exists()
        remedy = f" PEFT's file needs its {CONFIG_FILE} beside it." if alone else ""
        raise AdapterFileError(
            f"{path} is no LoRA in kohya's, diffusers' or PEFT's layout for this model; there is no module for: "
            f"{shorten(unknown) or 'it is empty'}.{remedy}"
        )
    return {
        module: _layer_factors(path, spellings[module], layers[module], module[0], scalings)
        for module in dict.fromkeys(names.values())
        if module in layers
    }


def _layer_factors(
    path: Path, name: str, parts: Mapping[str, Tensor], component: str, scalings: Mapping[str, LoraScaling]
) -> Factors:
    """Return the factors of one layer, from its parts."""
    if not parts.keys() >= {"A", "B"}:
        raise AdapterFileError(f"{path} has an incomplete update of {name}: of A, B and alpha only {', '.join(parts)}.")
    A, B = parts["A"], parts["B"]
    if not (A.ndim in (2, 4) and B.ndim in (2, 4) and A.numel() and B.numel() and len(A) == B[0].numel()):
        raise AdapterFileError(
            f"{path} has factors of {name} whose shapes do not fit: {tuple(A.shape)} and {tuple(B.shape)}."
        )
    scale = 1.0
    if "alpha" in parts:
        scale = parts["alpha"].item() / len(A)
    elif component in scalings:
        module = name.removeprefix(PREFIX).removeprefix(f"{component}.")
        scale = scalings[component].scale(module, len(A))
    return Factors(A=A.double().flatten(1), B=scale * B.double().flatten(1))


def split_key(key: str) -> tuple[str, str]:
    """Return a tensor's module and its part of it ("A", "B", "alpha"; "" for anything else)."""
    end = next((end for end in _PARTS if key.endswith(end)), "")
    return key.removesuffix(end).replace(".processor.", "."), _PARTS.get(end, "")
