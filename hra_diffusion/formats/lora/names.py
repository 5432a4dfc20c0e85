"""What a module of a pipeline is called in LoRAs of kohya's and diffusers' layouts."""

from collections.abc import Iterable
from typing import Final

from hra_diffusion.formats.original_names import original_names
from hra_diffusion.formats.peft import TEXT_PREFIX

KOHYA_PREFIXES: Final = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
# The first text encoder of models that have two.
KOHYA_FIRST_OF_TWO: Final = "lora_te1"

ModuleKey = tuple[str, str]
"""The component a module is in, and its name there."""


def kohya_names(modules: Iterable[ModuleKey], *, two_text_encoders: bool) -> dict[ModuleKey, str]:
    """Return kohya's names of a pipeline's modules, but for components that kohya has none for.

    Of SDXL, kohya trains the UNet of the original code, whose names all tools know; of others, diffusers'.

    Args:
        modules: component and name of all modules.
        two_text_encoders: whether this is SDXL.
    """
    modules = list(modules)
    original = original_names(module for component, module in modules if component == "unet")
    names: dict[ModuleKey, str] = {}
    for component, module in modules:
        if component in KOHYA_PREFIXES:
            first_of_two = two_text_encoders and component == "text_encoder"
            prefix = KOHYA_FIRST_OF_TWO if first_of_two else KOHYA_PREFIXES[component]
            spelled = _spelled_out(component, module)
            if two_text_encoders and component == "unet":
                spelled = original.get(module, module)
            names[component, module] = f"{prefix}_{spelled}".replace(".", "_")
    return names


def diffusers_name(component: str, module: str) -> str:
    """Return diffusers' name of a module."""
    return f"{component}.{_spelled_out(component, module)}"


def _spelled_out(component: str, module: str) -> str:
    """Add the part of text encoders' names that transformers 5 dropped and other tools know."""
    dropped = component.startswith("text_encoder") and not module.startswith(TEXT_PREFIX)
    return f"{TEXT_PREFIX}{module}" if dropped else module
