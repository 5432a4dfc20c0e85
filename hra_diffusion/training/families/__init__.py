"""The trainable model families: a file, a class and a row of ``FAMILIES`` for each."""

import torch

from hra_diffusion.errors import ModelError
from hra_diffusion.pipelines import load_pipeline, pipeline_class
from hra_diffusion.pipelines.bases import keep_vae_precision
from hra_diffusion.training.config import ModelConfig
from hra_diffusion.training.families.chroma import Chroma
from hra_diffusion.training.families.family import Conditioning, Denoiser, Family, PromptPart
from hra_diffusion.training.families.flux_1 import Flux1, Flux1Kontext
from hra_diffusion.training.families.flux_2 import Flux2Dev, Flux2Klein
from hra_diffusion.training.families.qwen_image import QwenImage
from hra_diffusion.training.families.stable_diffusion import StableDiffusion
from hra_diffusion.training.families.stable_diffusion_3 import StableDiffusion3
from hra_diffusion.training.families.stable_diffusion_xl import StableDiffusionXL
from hra_diffusion.training.families.z_image import ZImage

__all__ = ["FAMILIES", "Conditioning", "Denoiser", "Family", "PromptPart", "load"]

_ALL: tuple[type[Family], ...] = (
    StableDiffusion,
    StableDiffusionXL,
    StableDiffusion3,
    ZImage,
    Flux1,
    Flux1Kontext,
    Chroma,
    Flux2Klein,
    Flux2Dev,
    QwenImage,
)
FAMILIES = {family.pipeline_class: family for family in _ALL}


def load(model: ModelConfig, dtype: torch.dtype = torch.float32) -> Family:
    """Load a model from a folder or the hub, from safetensors only, with its autoencoder in float32.

    Args:
        model: the settings of the model.
        dtype: precision of the other components.

    Raises:
        ModelError: there is no such folder or model, its family cannot be trained, or it is a distilled model.
    """
    name = str(model.pretrained_model_name_or_path)
    kind = pipeline_class(model.pretrained_config_name_or_path or name, model.revision)
    if kind not in FAMILIES:
        raise ModelError(f"{name!r} is a {kind}, which cannot be trained here: use a model of {', '.join(FAMILIES)}.")
    pipe = load_pipeline(name, **model.loading, dtype=dtype)
    family = FAMILIES[kind](pipe)
    if (normalization := family.latent_space.normalization) not in family.normalizations:
        raise ModelError(
            f"The autoencoder of {name!r} has {normalization}, which a {kind} ignores when it generates images: use an "
            "autoencoder of the model's own family."
        )
    if family.distillation and not model.allow_distilled:
        raise ModelError(
            f"{name!r} is a distilled model, which training spoils ({family.distillation}): --allow_distilled trains "
            "it all the same."
        )
    keep_vae_precision(pipe.vae)
    return family
