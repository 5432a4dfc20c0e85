"""HRA in diffusers pipelines, of any kind with a denoiser (UNet or transformer) and text encoders.

>>> pipe = StableDiffusionPipeline.from_pretrained(model, use_safetensors=True)
>>> load_hra_weights(pipe, "tiger")
>>> pipe("a photo of a sks tiger").images[0]
"""

from hra_diffusion.formats.folders import base_model
from hra_diffusion.pipelines.acting import (
    LoadedAdapter,
    fuse_hra,
    hra_disabled,
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
from hra_diffusion.pipelines.models import draw, load_pipeline, pipeline_class
from hra_diffusion.pipelines.publishing import push_hra_weights
from hra_diffusion.pipelines.saving import save_hra_weights
from hra_diffusion.pipelines.tokens import set_tokens, token_embeddings, tokens_of

__all__ = [
    "DTYPES",
    "Fit",
    "LoadedAdapter",
    "adapted_components",
    "base_model",
    "denoiser_name",
    "draw",
    "export_lora",
    "fit_lora",
    "fuse_hra",
    "hra_disabled",
    "list_hra_adapters",
    "load_hra_weights",
    "load_pipeline",
    "merge_hra",
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
