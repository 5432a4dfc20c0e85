"""Names of a pipeline's modules in LoRAs of kohya's and diffusers' layouts."""

from collections.abc import Iterable
from typing import Final

from hra_diffusion.formats.original_names import original_names
from hra_diffusion.formats.peft import TEXT_PREFIX

KOHYA_PREFIXES: Final = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
# The first text encoder of models that have two.
KOHYA_FIRST_OF_TWO: Final = "lora_te1"

ModuleKey = tuple[str, str]
"""A module's component, and its name in the component."""


def kohya_names(modules: Iterable[ModuleKey], *, two_text_encoders: bool) -> dict[ModuleKey, str]:
    """Return kohya's names of a pipeline's modules, except for components without such names.

    For SDXL, kohya uses the UNet's names in the original code; for other models, diffusers' names.

    Args:
        modules: component and name of all modules.
        two_text_encoders: whether the pipeline is SDXL's.
    """
    modules = list(modules)
    original = original_names(module for component, module in modules if component == "unet")
    names: dict[ModuleKey, str] = {}
    for component, module in modules:
        if component in KOHYA_PREFIXES:
            first_of_two = two_text_encoders and component == "text_encoder"
            prefix = KOHYA_FIRST_OF_TWO if first_of_two else KOHYA_PREFIXES[component]
            spelled = _with_text_prefix(component, module)
            if two_text_encoders and component == "unet":
                spelled = original.get(module, module)
            names[component, module] = f"{prefix}_{spelled}".replace(".", "_")
    return names


def diffusers_name(component: str, module: str) -> str:
    """Return diffusers' name of a module."""
    return f"{component}.{_with_text_prefix(component, module)}"


def _with_text_prefix(component: str, module: str) -> str:
    """Add the prefix of text encoders' modules, which transformers 5 dropped and other tools expect."""
    dropped = component.startswith("text_encoder") and not module.startswith(TEXT_PREFIX)
    return f"{TEXT_PREFIX}{module}" if dropped else module
