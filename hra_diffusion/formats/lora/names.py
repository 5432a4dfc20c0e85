"""Names of a pipeline's modules in LoRAs of kohya, of all versions of diffusers, and of PEFT."""

import re
from collections.abc import Iterable
from typing import Final

from hra_diffusion.formats.original_names import original_names
from hra_diffusion.formats.original_transformers import original_names_of, swapped_modules
from hra_diffusion.formats.peft import TEXT_PREFIX

KOHYA_PREFIXES: Final = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
# The first text encoder of models that have two.
KOHYA_FIRST_OF_TWO: Final = "lora_te1"
# Before diffusers named components, its files held denoisers alone.
_UNPREFIXED: Final = ("unet", "transformer")

ModuleKey = tuple[str, str]
"""A module's component, and its name in the component."""


def kohya_names(
    modules: Iterable[ModuleKey], *, two_text_encoders: bool = False, transformer: str | None = None
) -> dict[ModuleKey, str]:
    """Return kohya's names of a pipeline's modules, except for components without such names.

    For SDXL and transformers, kohya uses the denoiser's names in the original code; for other models, diffusers' names.
    Modules that are one layer of the original code have one name, and are in the order of its rows.

    Args:
        modules: component and name of all modules.
        two_text_encoders: whether the pipeline is SDXL's.
        transformer: the class of the pipeline's transformer in diffusers, if it has one.
    """
    modules = list(modules)
    original = original_names(module for component, module in modules if component == "unet")
    names = {key: f"lora_unet_{name}".replace(".", "_") for key, name in _transformer_names(modules, transformer)}
    for component, module in modules:
        if component in KOHYA_PREFIXES:
            first_of_two = two_text_encoders and component == "text_encoder"
            prefix = KOHYA_FIRST_OF_TWO if first_of_two else KOHYA_PREFIXES[component]
            spelled = _with_text_prefix(component, module)
            if two_text_encoders and component == "unet":
                spelled = original.get(module, module)
            names[component, module] = f"{prefix}_{spelled}".replace(".", "_")
    return names


def swapped_layers(modules: Iterable[ModuleKey], transformer: str | None) -> set[ModuleKey]:
    """Return a pipeline's modules whose rows' halves are swapped in files of kohya and ComfyUI."""
    members = [module for component, module in modules if component == "transformer"]
    return {("transformer", module) for module in swapped_modules(transformer, members)}


def _transformer_names(modules: Iterable[ModuleKey], transformer: str | None) -> list[tuple[ModuleKey, str]]:
    """Return the modules of a transformer with their names in the original code; none for an unknown class."""
    members = [module for component, module in modules if component == "transformer"]
    named = original_names_of(transformer, members) if transformer else {}
    return [(("transformer", module), name) for module, name in named.items()]


def diffusers_name(component: str, module: str) -> str:
    """Return diffusers' name of a module."""
    return f"{component}.{_with_text_prefix(component, module)}"


def known_names(modules: Iterable[ModuleKey], transformer: str | None = None) -> dict[str, list[ModuleKey]]:
    """Return a pipeline's modules by all their names in files of kohya, diffusers and ComfyUI.

    Several modules are one layer of the original code, in the order of its rows.
    """
    modules = list(modules)
    names = {
        name: [key]
        for two_text_encoders in (False, True)
        for key, name in kohya_names(modules, two_text_encoders=two_text_encoders).items()
    }
    for component in dict.fromkeys(component for component, _ in modules):
        spelled = {name: [key] for name, key in component_names(component, modules).items()}
        names |= {f"{component}.{name}": keys for name, keys in spelled.items()}
        if component in _UNPREFIXED:
            names |= spelled
    for key, original in _transformer_names(modules, transformer):
        names[f"diffusion_model.{key[1]}"] = [key]
        for name in _original_spellings(original):
            names[name] = [known for known in names.get(name, []) if known != key] + [key]
    return names


def swapped_names(modules: Iterable[ModuleKey], transformer: str | None) -> set[str]:
    """Return the names of :func:`swapped_layers` in files of kohya and ComfyUI."""
    modules = list(modules)
    swapped = swapped_layers(modules, transformer)
    originals = [original for key, original in _transformer_names(modules, transformer) if key in swapped]
    return {name for original in originals for name in _original_spellings(original)}


def _original_spellings(original: str) -> tuple[str, str]:
    """Return kohya's and ComfyUI's spelling of a layer's name in the original code."""
    return f"lora_unet_{original}".replace(".", "_"), f"diffusion_model.{original}"


def component_names(component: str, modules: Iterable[ModuleKey]) -> dict[str, ModuleKey]:
    """Return a component's modules by their names, with and without `text_model.`, and by those of old diffusers."""
    members = [key for key in modules if key[0] == component]
    spelled = {
        name: key for key in members for name in (key[1], _with_text_prefix(*key), key[1].removeprefix(TEXT_PREFIX))
    }
    return spelled | {_processor_name(name): key for name, key in spelled.items()}


def _processor_name(module: str) -> str:
    """Return the name of an attention's layer in files of diffusers' attention processors, without `processor`.

    to_q, to_out.0 and q_proj are to_q_lora, to_out_lora and to_q_lora.
    """
    module = re.sub(r"(?<=self_attn\.)(q|k|v|out)_proj$", r"to_\1", module)
    return f"{module.removesuffix('.0') if module.endswith('to_out.0') else module}_lora"


def _with_text_prefix(component: str, module: str) -> str:
    """Add the prefix of CLIP's modules, which transformers 5 dropped and other tools expect."""
    dropped = component.startswith("text_encoder") and module.startswith(("encoder.layers.", "embeddings."))
    return f"{TEXT_PREFIX}{module}" if dropped else module
