"""HRA in diffusers pipelines, of any kind with a denoiser (UNet or transformer) and text encoders.

>>> pipe = StableDiffusionPipeline.from_pretrained(model, use_safetensors=True)
>>> load_hra_weights(pipe, "tiger")
>>> pipe("a photo of a sks tiger").images[0]

A public name's module is imported when the name is first used: reading an adapter's folder needs no diffusers. The
table below is the only list of the names; type checkers read the modules by wildcard imports.
"""

# ruff: noqa: F403
# pyright: reportGeneralTypeIssues=false, reportWildcardImportFromLibrary=false

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hra_diffusion.formats.folders import *
    from hra_diffusion.pipelines.activation import *
    from hra_diffusion.pipelines.bases import *
    from hra_diffusion.pipelines.components import *
    from hra_diffusion.pipelines.export import *
    from hra_diffusion.pipelines.extraction import *
    from hra_diffusion.pipelines.fitting import *
    from hra_diffusion.pipelines.loading import *
    from hra_diffusion.pipelines.merging import *
    from hra_diffusion.pipelines.models import *
    from hra_diffusion.pipelines.prompts import *
    from hra_diffusion.pipelines.protocol import *
    from hra_diffusion.pipelines.publishing import *
    from hra_diffusion.pipelines.saving import *
    from hra_diffusion.pipelines.tokens import *
else:
    from hra_diffusion.lazy import attach

    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "hra_diffusion.formats.folders": ("RecordedBase", "base_model", "recorded_base"),
            "hra_diffusion.pipelines.activation": (
                "LoadedAdapter",
                "disable_hra",
                "fuse_hra",
                "list_hra_adapters",
                "set_hra_adapters",
                "unfuse_hra",
                "using_hra_adapters",
            ),
            "hra_diffusion.pipelines.bases": ("find_base", "load_base"),
            "hra_diffusion.pipelines.components": ("adapted_components", "denoiser_name"),
            "hra_diffusion.pipelines.export": ("export_lora",),
            "hra_diffusion.pipelines.extraction": ("Extraction", "extract_hra"),
            "hra_diffusion.pipelines.fitting": ("Fit", "fit_lora"),
            "hra_diffusion.pipelines.loading": ("load_hra_weights", "unload_hra_weights"),
            "hra_diffusion.pipelines.merging": ("merge_hra",),
            "hra_diffusion.pipelines.models": ("generate_image", "load_pipeline", "model_config", "pipeline_class"),
            "hra_diffusion.pipelines.prompts": ("prompt_options",),
            "hra_diffusion.pipelines.protocol": ("Pipeline",),
            "hra_diffusion.pipelines.publishing": ("push_hra_weights",),
            "hra_diffusion.pipelines.saving": ("save_hra_weights",),
            "hra_diffusion.pipelines.tokens": ("set_tokens", "token_embeddings", "tokens_of"),
        },
    )
