"""Fingerprints: a checkpoint resumes only a run with the same settings, images and model.

Images and the model are compared by content, so that folders may move. Settings without effect on the steps are free:
those of validation, of saving, and the number of steps.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.folders import component_folders, encoder_beside
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.text import shorten
from hra_diffusion.training.config import DreamBoothConfig, TrainingConfig
from hra_diffusion.training.config.file import changed_settings, flat_values
from hra_diffusion.training.config.init_adapter import initial_parts
from hra_diffusion.training.model_digest import model_digest
from hra_diffusion.training.outputs.checkpoint import read_progress

FREE = frozenset(
    {
        "pretrained_model_name_or_path",
        "revision",
        "variant",
        "allow_distilled",
        "pretrained_config_name_or_path",
        "pretrained_vae_model_name_or_path",  # its weights are in the model's digest
        "instance_data_dir",
        "class_data_dir",
        "mask_data_dir",
        "train_data_dir",
        "validation_data_dir",
        "dataset_name",
        "cache_dir",
        "sample_batch_size",
        "output_dir",
        "max_train_steps",
        "num_train_epochs",
        "train_batch_size",  # compared over all devices, below
        "gradient_checkpointing",
        "blocks_to_swap",
        "checkpointing_steps",
        "checkpoints_total_limit",
        "resume_from_checkpoint",
        "dry_run",
        "report_to",
        "logging_dir",
        "validation_steps",
        "validate_every_n_steps",
        "validation_prompts",
        "validation_prompt",
        "validation_image",
        "num_validation_images",
    }
)
"""Settings that a resumed run may change."""

FREE_WITHOUT_PRIOR = frozenset(
    {"class_prompt", "num_class_images", "prior_loss_weight", "prior_target", "num_inference_steps", "guidance_scale"}
)
"""Settings of the class images, which have no effect without prior preservation."""


def fingerprint(config: TrainingConfig, images: Mapping[str, str], pipe: Pipeline, processes: int) -> dict[str, Any]:
    """Return the settings, images and model of a run, as JSON.

    Args:
        config: the run's complete settings.
        images: a digest of each training image with its caption, by name.
        pipe: the run's pipeline; its frozen weights identify the model.
        processes: number of processes of the run.
    """
    settings = flat_values(config)
    has_prior = isinstance(config, DreamBoothConfig) and config.prior.with_prior_preservation
    free = FREE if has_prior else FREE | FREE_WITHOUT_PRIOR
    settings["init_adapter"] = _digest(initial_parts(config))
    others = settings["orthogonal_to"] or ()
    settings["orthogonal_to"] = tuple(_digest(component_folders(source)) for source in others) or None
    return {  # "pictures" is the key of the images in checkpoint files
        "settings": {name: _as_json(settings[name]) for name in sorted(settings.keys() - free)}
        | {"train_batch_size on all devices": config.run.train_batch_size * processes},
        "pictures": dict(images),
        "model": model_digest(pipe),
    }


def check_fingerprint(checkpoint: Path, fingerprint: Mapping[str, Any], total_steps: int) -> None:
    """Compare a run's fingerprint and number of steps with those of a checkpoint.

    Raises:
        ConfigError: they differ, or the checkpoint is of a later step; the message names the differences.
        AdapterFileError: the checkpoint is damaged.
    """
    step, saved = read_progress(checkpoint)
    if missing := sorted(fingerprint.keys() - saved.keys()):
        names = ", ".join(missing).replace("pictures", "images")
        raise AdapterFileError(f"The checkpoint {checkpoint} is damaged: it lacks its {names}.")
    changes = changed_settings(saved["settings"], fingerprint["settings"])
    differences = [f"--{name} was {before} and is {now}" for name, (before, now) in changes.items()]
    if changed := sorted({name for name, _ in saved["pictures"].items() ^ fingerprint["pictures"].items()}):
        differences.append(f"other images or captions: {shorten(changed)}")
    if saved["model"] != fingerprint["model"]:
        differences.append("another base model")
    if differences:
        raise ConfigError(
            f"{checkpoint} belongs to another run ({'; '.join(differences)}): resume with the settings and images of "
            "that run, or start a new run without --resume_from_checkpoint."
        )
    if step > total_steps:
        raise ConfigError(
            f"{checkpoint} is of step {step}, and --max_train_steps is {total_steps}: set it to {step} or more."
        )


def _digest(parts: Mapping[str, Path]) -> str | None:
    """Digest the weights of the adapter to start from, its condition encoder included; None without one."""
    if not parts:
        return None
    digest = hashlib.blake2b(digest_size=16)
    encoder = encoder_beside(parts)
    for folder in (*(parts[name] for name in sorted(parts)), *([encoder] if encoder else [])):
        for path in sorted(folder.glob("*.safetensors")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _as_json(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
