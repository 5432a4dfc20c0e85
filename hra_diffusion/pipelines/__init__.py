"""HRA in diffusers pipelines, of any kind with a denoiser (UNet or transformer) and text encoders.

>>> pipe = StableDiffusionPipeline.from_pretrained(model, use_safetensors=True)
>>> load_hra_weights(pipe, "tiger")
>>> pipe("a photo of a sks tiger").images[0]

The public names are looked up when they are first used: to know an adapter's folder, diffusers is not needed.
"""

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from hra_diffusion.formats.folders import base_model
    from hra_diffusion.pipelines.activation import (
        LoadedAdapter,
        disable_hra,
        fuse_hra,
        list_hra_adapters,
        set_hra_adapters,
        unfuse_hra,
        using_hra_adapters,
    )
    from hra_diffusion.pipelines.components import adapted_components, denoiser_name
    from hra_diffusion.pipelines.export import DTYPES, export_lora
    from hra_diffusion.pipelines.fitting import Fit, fit_lora
    from hra_diffusion.pipelines.loading import load_hra_weights, unload_hra_weights
    from hra_diffusion.pipelines.merging import merge_hra
    from hra_diffusion.pipelines.models import generate_image, load_pipeline, model_config, pipeline_class
    from hra_diffusion.pipelines.publishing import push_hra_weights
    from hra_diffusion.pipelines.saving import save_hra_weights
    from hra_diffusion.pipelines.tokens import set_tokens, token_embeddings, tokens_of

_HOMES: Final = {
    "DTYPES": "hra_diffusion.pipelines.export",
    "Fit": "hra_diffusion.pipelines.fitting",
    "LoadedAdapter": "hra_diffusion.pipelines.activation",
    "adapted_components": "hra_diffusion.pipelines.components",
    "base_model": "hra_diffusion.formats.folders",
    "denoiser_name": "hra_diffusion.pipelines.components",
    "generate_image": "hra_diffusion.pipelines.models",
    "export_lora": "hra_diffusion.pipelines.export",
    "fit_lora": "hra_diffusion.pipelines.fitting",
    "fuse_hra": "hra_diffusion.pipelines.activation",
    "disable_hra": "hra_diffusion.pipelines.activation",
    "list_hra_adapters": "hra_diffusion.pipelines.activation",
    "load_hra_weights": "hra_diffusion.pipelines.loading",
    "load_pipeline": "hra_diffusion.pipelines.models",
    "merge_hra": "hra_diffusion.pipelines.merging",
    "model_config": "hra_diffusion.pipelines.models",
    "pipeline_class": "hra_diffusion.pipelines.models",
    "push_hra_weights": "hra_diffusion.pipelines.publishing",
    "save_hra_weights": "hra_diffusion.pipelines.saving",
    "set_hra_adapters": "hra_diffusion.pipelines.activation",
    "set_tokens": "hra_diffusion.pipelines.tokens",
    "token_embeddings": "hra_diffusion.pipelines.tokens",
    "tokens_of": "hra_diffusion.pipelines.tokens",
    "unfuse_hra": "hra_diffusion.pipelines.activation",
    "unload_hra_weights": "hra_diffusion.pipelines.loading",
    "using_hra_adapters": "hra_diffusion.pipelines.activation",
}

__all__ = [
    "DTYPES",
    "Fit",
    "LoadedAdapter",
    "adapted_components",
    "base_model",
    "denoiser_name",
    "disable_hra",
    "export_lora",
    "fit_lora",
    "fuse_hra",
    "generate_image",
    "list_hra_adapters",
    "load_hra_weights",
    "load_pipeline",
    "merge_hra",
    "model_config",
    "pipeline_class",
    "push_hra_weights",
    "save_hra_weights",
    "set_hra_adapters",
    "set_tokens",
    "token_embeddings",
    "tokens_of",
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
