"""Metadata of a LoRA's file: kohya's ``ss_`` keys and Stability's ModelSpec 1.0.0."""

import json
from collections.abc import Mapping
from typing import Any, Final

# Architecture of ModelSpec and version of kohya's scripts, by family: Stable Diffusion's by name, others by pipeline.
_FAMILIES: Final[Mapping[str, tuple[str, str]]] = {
    "sd1": ("stable-diffusion-v1", "sd_v1"),
    "sd2": ("stable-diffusion-v2-768-v", "sd_v2"),
    "sdxl": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
    "ZImagePipeline": ("Z-Image", "z_image"),
    "QwenImagePipeline": ("Qwen-Image", "qwen_image"),
    "FluxPipeline": ("flux-1-dev", "flux1"),
    "FluxKontextPipeline": ("flux-1-dev", "flux1"),
    "ChromaPipeline": ("chroma", "chroma"),
    "Flux2Pipeline": ("Flux.2-dev", "flux_2_dev"),
}
_PREDICTIONS: Final = {"v_prediction": "v", "epsilon": "epsilon"}
# kohya's names of a run's settings, without ss_.
_TRAINING: Final = {
    "learning_rate": "learning_rate",
    "text_encoder_lr": "text_encoder_lr",
    "max_train_steps": "max_train_steps",
    "total_batch_size": "train_batch_size",
    "optimizer": "optimizer",
    "lr_scheduler": "lr_scheduler",
    "seed": "seed",
    "resolution": "resolution",
    "mixed_precision": "mixed_precision",
}


def describe(*, title: str, rank: int, family: str, base_model: str | None, **more: Any) -> dict[str, str]:
    """Return a LoRA's metadata by the keys of kohya and ModelSpec.

    Args:
        title: its name.
        rank: its rank, equal to alpha.
        family: the family of its base model: sd1, sd2, sdxl, or the class of another pipeline.
        base_model: the name of its base model.
        more: strength (float, or a table), is_dora (bool), trigger (words), license, thumbnail (a data URL),
            prediction_type, training (a run's settings); None is left out.
    """
    architecture, version = _FAMILIES.get(family, (None, None))
    training: Mapping[str, Any] = more.get("training") or {}
    kind = "DoRA" if more.get("is_dora") else "LoRA"
    settings = {f"ss_{name}": training.get(key) for name, key in _TRAINING.items()}
    known = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture and f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.description": f"The exact {kind} of an HRA adapter at strength {_strength(more)}.",
        "modelspec.trigger_phrase": more.get("trigger"),
        "modelspec.license": more.get("license"),
        "modelspec.thumbnail": more.get("thumbnail"),
        "modelspec.prediction_type": _PREDICTIONS.get(more.get("prediction_type") or ""),
        "ss_base_model_version": version,
        "ss_v2": str(family == "sd2"),
        "ss_sd_model_name": base_model,
        "ss_output_name": title,
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": float(rank),
        **settings,
        "ss_training_comment": json.dumps(training, default=str) if training else None,
    }
    return {name: str(value) for name, value in known.items() if value is not None}


def _strength(more: Mapping[str, Any]) -> str:
    """Return the strength in words: a number, or a table of components and blocks as JSON."""
    strength = more.get("strength", 1.0)
    return json.dumps(strength) if isinstance(strength, Mapping) else f"{strength:g}"
