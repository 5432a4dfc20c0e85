"""Would going on from a checkpoint give the run that began it? What decides is compared: settings, images, model.

Images and the model count by content, so that folders may move. Settings that change what is shown, saved or how
long the run is, but no step of it, are free.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hra_diffusion.text import shorten
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.training.outputs.checkpoint import read_progress
from hra_diffusion.training.config import DreamBoothConfig, TrainingConfig
from hra_diffusion.training.config.file import flat_values
from hra_diffusion.training.outputs.model_digest import model_digest

FREE = frozenset(
    {
        "pretrained_model_name_or_path",
        "revision",
        "variant",
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
        "train_batch_size",  # counts over all devices
        "gradient_checkpointing",
        "checkpointing_steps",
        "checkpoints_total_limit",
        "resume_from_checkpoint",
        "dry_run",
        "report_to",
        "validation_steps",
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
"""Settings that make the images of the class, and no step where there are none."""


def identity(config: TrainingConfig, images: Mapping[str, str], pipe: Any, processes: int) -> dict[str, Any]:
    """Collect what makes a run this one and no other, as JSON has it.

    Args:
        config: its settings, with everything filled in.
        images: a digest of each image that is trained on and of its caption, by name.
        pipe: its pipeline; frozen weights tell the model.
        processes: how many take part.
    """
    settings = flat_values(config)
    draws = isinstance(config, DreamBoothConfig) and config.prior.with_prior_preservation
    free = FREE if draws else FREE | FREE_WITHOUT_PRIOR
    return {
        "settings": {name: _as_json(settings[name]) for name in sorted(settings.keys() - free)}
        | {"train_batch_size on all devices": config.run.train_batch_size * processes},
        "pictures": dict(images),
        "model": model_digest(pipe),
    }


def check_same_run(checkpoint: Path, now: Mapping[str, Any], total_steps: int) -> None:
    """Compare the identity in a checkpoint with this run's, which has a number of steps.

    Raises:
        ConfigError: they differ, and the message names what does; or the checkpoint is of a later step.
        AdapterFileError: the checkpoint is damaged.
    """
    done, then = read_progress(checkpoint)
    if lacking := sorted(now.keys() - then.keys()):
        raise AdapterFileError(f"The checkpoint {checkpoint} is damaged: it does not say its {', '.join(lacking)}.")
    before, here = then["settings"], now["settings"]
    differences = [
        f"--{name} was {before[name]} and is {here[name]}"
        for name in sorted(before.keys() & here.keys())
        if before[name] != here[name]
    ]
    if changed := sorted({name for name, _ in then["pictures"].items() ^ now["pictures"].items()}):
        differences.append(f"other images or captions: {shorten(changed)}")
    if then["model"] != now["model"]:
        differences.append("another base model")
    if differences:
        raise ConfigError(
            f"{checkpoint} belongs to another run ({'; '.join(differences)}): go on with what it was made with, "
            "or start anew without --resume_from_checkpoint."
        )
    if done > total_steps:
        raise ConfigError(f"{checkpoint} has done {done} steps: set --max_train_steps, now {total_steps}, at least so.")


def _as_json(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
