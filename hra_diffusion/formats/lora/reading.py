"""Reading of LoRAs from other tools: their factors, by module."""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from safetensors import safe_open
from torch import Tensor

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.lora.names import ModuleKey, diffusers_name, kohya_names
from hra_diffusion.formats.reading import reading
from hra_diffusion.formats.tensors import read_tensors
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


# Suffixes of A's and B's tensors: kohya's, those of diffusers and PEFT, and two of diffusers before it used PEFT.
_SPELLINGS: Final = (
    ("lora_down.weight", "lora_up.weight"),
    ("lora_A.weight", "lora_B.weight"),
    ("lora.down.weight", "lora.up.weight"),
    ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
)


def read_lora(path: Path, modules: Iterable[ModuleKey]) -> dict[ModuleKey, Factors]:
    """Read a LoRA in kohya's or diffusers' layout.

    Args:
        path: a safetensors file.
        modules: component and name of every adaptable module.

    Returns:
        Factors by component and module.

    Raises:
        AdapterFileError: the file is damaged, or holds anything but LoRAs of these modules.
    """
    if path.is_dir():
        raise AdapterFileError(f"{path} is a folder: name the .safetensors file of a LoRA in it.")
    tensors = read_tensors(path)
    with reading(path):
        return _factors(path, tensors, list(modules))


def _factors(path: Path, tensors: dict[str, Tensor], modules: list[ModuleKey]) -> dict[ModuleKey, Factors]:
    """Return the factors among tensors, which are removed from the dict; all of them must belong to a module."""
    scales = _scales(path)
    kohya = [kohya_names(modules, two_text_encoders=two) for two in (False, True)]
    factors: dict[ModuleKey, Factors] = {}
    for component, module in modules:
        names = [table[component, module] for table in kohya if (component, module) in table]
        names += [diffusers_name(component, module), f"{component}.{module}"]
        for name, (down, up) in itertools.product(dict.fromkeys(names), _SPELLINGS):
            A, B = tensors.get(f"{name}.{down}"), tensors.get(f"{name}.{up}")
            if A is None or B is None:
                continue
            alpha = tensors.pop(f"{name}.alpha", None)
            if not (A.ndim in (2, 4) and B.ndim in (2, 4) and A.numel() and B.numel() and len(A) == B[0].numel()):
                raise AdapterFileError(
                    f"{path} has factors of {name} whose shapes do not fit: {tuple(A.shape)} and {tuple(B.shape)}."
                )
            scale = scales.get(component, 1.0) if alpha is None else alpha.item() / len(A)
            factors[component, module] = Factors(A=A.double().flatten(1), B=scale * B.double().flatten(1))
            del tensors[f"{name}.{down}"], tensors[f"{name}.{up}"]
    if tensors or not factors:
        raise AdapterFileError(
            f"{path} is no LoRA in kohya's or diffusers' layout for this model; there is no module for: "
            f"{shorten(tensors) or 'it is empty'}."
        )
    return factors


def _scales(path: Path) -> dict[str, float]:
    """Read alpha / r of every component from the header of diffusers' files."""
    with safe_open(path, "pt") as file:
        header = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
    try:
        described = json.loads(header)
        return {
            key.removesuffix(".lora_alpha"): float(alpha / described[key.removesuffix("lora_alpha") + "r"])
            for key, alpha in described.items()
            if key.endswith(".lora_alpha")
        }
    except Exception as error:  # also OverflowError for numbers such as 10 ** 400, and RecursionError
        raise AdapterFileError(f"{path} has a damaged header: lora_adapter_metadata is {header[:80]!r}.") from error
