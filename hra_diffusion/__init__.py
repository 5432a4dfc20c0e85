"""hra_diffusion: personalize diffusion models with Householder Reflection Adaptation (HRA, arXiv 2405.17484).

The public names are looked up when they are first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from hra_diffusion.adapter import HRAConfig, HRAModel
    from hra_diffusion.control import StableDiffusionHRAControlPipeline, load_hra_control, save_hra_control
    from hra_diffusion.pipelines import (
        export_lora,
        fit_lora,
        fuse_hra,
        list_hra_adapters,
        load_hra_weights,
        merge_hra,
        push_hra_weights,
        save_hra_weights,
        set_hra_adapters,
        unfuse_hra,
        unload_hra_weights,
        using_hra_adapters,
    )

_HOMES: Final = {
    "HRAConfig": "hra_diffusion.adapter",
    "HRAModel": "hra_diffusion.adapter",
    "StableDiffusionHRAControlPipeline": "hra_diffusion.control",
    "export_lora": "hra_diffusion.pipelines",
    "fit_lora": "hra_diffusion.pipelines",
    "fuse_hra": "hra_diffusion.pipelines",
    "list_hra_adapters": "hra_diffusion.pipelines",
    "load_hra_control": "hra_diffusion.control",
    "load_hra_weights": "hra_diffusion.pipelines",
    "merge_hra": "hra_diffusion.pipelines",
    "push_hra_weights": "hra_diffusion.pipelines",
    "save_hra_control": "hra_diffusion.control",
    "save_hra_weights": "hra_diffusion.pipelines",
    "set_hra_adapters": "hra_diffusion.pipelines",
    "unfuse_hra": "hra_diffusion.pipelines",
    "unload_hra_weights": "hra_diffusion.pipelines",
    "using_hra_adapters": "hra_diffusion.pipelines",
}

__all__ = [
    "HRAConfig",
    "HRAModel",
    "StableDiffusionHRAControlPipeline",
    "export_lora",
    "fit_lora",
    "fuse_hra",
    "list_hra_adapters",
    "load_hra_control",
    "load_hra_weights",
    "merge_hra",
    "push_hra_weights",
    "save_hra_control",
    "save_hra_weights",
    "set_hra_adapters",
    "unfuse_hra",
    "unload_hra_weights",
    "using_hra_adapters",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
