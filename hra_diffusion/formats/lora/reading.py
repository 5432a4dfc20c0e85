"""Reading of LoRAs from other tools, in files and in PEFT's folders."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from hra_diffusion.adapter.config import CONFIG_FILE
from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.lora.factors import Factors, factors_of, split_key
from hra_diffusion.formats.lora.fusing import split_fused, unswap
from hra_diffusion.formats.lora.kinds import EXTRACT, LOAD, refuse_other_kinds
from hra_diffusion.formats.lora.names import ModuleKey, component_names, known_names, swapped_names
from hra_diffusion.formats.lora.peft_config import LoraScaling, lora_scaling
from hra_diffusion.formats.peft import FILES, PREFIX, WEIGHTS_FILE, weights_file
from hra_diffusion.formats.reading import read_json, reading
from hra_diffusion.formats.tensors import read_tensors


def read_lora(
    path: Path,
    modules: Iterable[ModuleKey],
    *,
    transformer: str | None = None,
    widths: Mapping[ModuleKey, int] | None = None,
) -> dict[ModuleKey, Factors]:
    """Read a LoRA in kohya's, diffusers' or PEFT's layout.

    Args:
        path: a safetensors file, or PEFT's folder of one component or with a sub-folder a component.
        modules: component and name of every adaptable module.
        transformer: the class of the pipeline's transformer in diffusers, if it has one.
        widths: number of rows of the weights of its modules.

    Returns:
        Factors by component and module.

    Raises:
        AdapterFileError: the file is damaged, or holds anything but LoRAs of these modules.
    """
    modules = list(modules)
    if path.name == WEIGHTS_FILE and (path.parent / CONFIG_FILE).is_file():
        path = path.parent
    if path.is_dir():
        return _read_folder(path, modules)
    tensors = read_tensors(path)
    refuse_other_kinds(path, tensors)
    scalings = _header(path)
    names = known_names(modules, transformer)
    with reading(path):
        fused = {name: keys for name, keys in names.items() if len(keys) > 1}
        tensors = split_fused(path, unswap(tensors, swapped_names(modules, transformer)), fused, widths or {})
        return factors_of(path, tensors, {name: keys[0] for name, keys in names.items() if len(keys) == 1}, scalings)


def _read_folder(path: Path, modules: list[ModuleKey]) -> dict[ModuleKey, Factors]:
    """Read PEFT's folder of one component, or its sub-folders of several."""
    single = (path / CONFIG_FILE).is_file()
    folders = [path] if single else sorted({file.parent for name in FILES for file in path.glob(f"*/{name}")})
    if not folders:
        raise AdapterFileError(
            f"{path} is a folder: name the .safetensors file of a LoRA in it, or a folder of PEFT with {CONFIG_FILE} "
            f"and {WEIGHTS_FILE}."
        )
    components: dict[str, dict[ModuleKey, Factors]] = {}
    for folder in folders:
        component, factors = _read_component(folder, modules)
        if component in components:
            raise AdapterFileError(f"{path} has two LoRAs of the component {component}: name the folder of one.")
        components[component] = factors
    return {module: layer for factors in components.values() for module, layer in factors.items()}


def _read_component(folder: Path, modules: list[ModuleKey]) -> tuple[str, dict[ModuleKey, Factors]]:
    """Read PEFT's two files of one component."""
    config, path = folder / CONFIG_FILE, weights_file(folder)
    settings = read_json(config)
    kind = settings.get("peft_type")
    if kind != "LORA":
        remedy = LOAD if kind == "HRA" else EXTRACT
        raise AdapterFileError(f"{config} is for an adapter of the kind {str(kind)[:80]}, not for a LoRA. {remedy}")
    tensors = read_tensors(path)
    refuse_other_kinds(path, tensors)
    with reading(config):
        scaling = lora_scaling(settings, config)
    with reading(path):
        component = _component(path, tensors, modules)
        names = component_names(component, modules)
        names |= {f"{PREFIX}{name}": key for name, key in names.items()}
        return component, factors_of(path, tensors, names, {component: scaling})


def _component(path: Path, tensors: Iterable[str], modules: list[ModuleKey]) -> str:
    """Return the component of PEFT's file: the one with its folder's name, or else the only one with its modules."""
    folder, components = path.resolve().parent.name, list(dict.fromkeys(component for component, _ in modules))
    if folder in components:
        return folder
    named = {split_key(key)[0].removeprefix(PREFIX) for key in tensors}
    fitting = [component for component in components if named <= component_names(component, modules).keys()]
    if len(fitting) != 1:
        result = f"fits {' and '.join(fitting)}" if fitting else "fits no component of the model"
        raise AdapterFileError(f"{path} {result}: name its folder after its component ({', '.join(components)}).")
    return fitting[0]


def _header(path: Path) -> dict[str, LoraScaling]:
    """Read PEFT's settings of every component from the header of diffusers' files."""
    with reading(path), safe_open(path, "pt") as file:
        header = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
    try:
        settings: dict[str, dict[str, Any]] = {}
        for key, value in json.loads(header).items():
            component, setting = key.split(".", 1)
            settings.setdefault(component, {})[setting] = value
        return {component: lora_scaling(values, path) for component, values in settings.items()}
    except AdapterFileError:
        raise
    except Exception as error:  # also OverflowError for numbers such as 10 ** 400, and RecursionError
        raise AdapterFileError(f"{path} has a damaged header: lora_adapter_metadata is {header[:80]!r}.") from error
