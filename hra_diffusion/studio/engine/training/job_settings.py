"""The settings of a training job in its folder: moved to another folder, or read back for the form."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hra_diffusion.formats.folders import public_name
from hra_diffusion.studio.engine.adapters.subject_prompts import split_prompts
from hra_diffusion.studio.engine.training.control_job import condition_of
from hra_diffusion.studio.engine.training.run_options import RUN_OPTIONS, option_text
from hra_diffusion.studio.engine.training.training_images import TrainingImage
from hra_diffusion.studio.engine.training.training_job import IMAGES, Preset, is_control, read_settings, settings_file
from hra_diffusion.training.config import ControlNetConfig, DreamBoothConfig
from hra_diffusion.training.config.file import flat_values, read_toml, to_toml, with_values

_RUN_SETTINGS = "config.toml"
"""The complete settings, written by the run."""


def moved_settings(folder: Path, target: Path) -> dict[Path, str]:
    """Return the settings files of a job whose folder moves, by their paths there.

    Raises:
        ConfigError: a file is damaged.
    """
    texts: dict[Path, str] = {}
    for file in (settings_file(folder), folder / _RUN_SETTINGS):
        if file.is_file():
            config = read_toml(file, ControlNetConfig() if is_control(folder) else DreamBoothConfig())
            paths = {
                name: target / value.relative_to(folder)
                for name, value in flat_values(config).items()
                if isinstance(value, Path) and value.is_relative_to(folder)
            }
            texts[target / file.name] = to_toml(with_values(config, paths))
    return texts


def form_values(folder: Path) -> dict[str, Any]:
    """Return the form's values of a job.

    Returns:
        "images", "kind", "base", "subject", "token" and "prompt_prefix" or "annotator", the preset's numbers, and the
        texts of `RUN_OPTIONS`.

    Raises:
        HRAError: the settings are missing or damaged.
    """
    config = read_settings(folder)
    validation, steps = config.validation, config.run.max_train_steps or 1
    control = isinstance(config, ControlNetConfig)
    class_images = 0 if control or not config.prior.with_prior_preservation else config.prior.num_class_images
    preset = Preset(
        steps=steps,
        rank=config.adapter.rank,
        class_images=class_images,
        validations=round(steps / validation.validation_steps) if validation.validation_steps else 0,
        inference_steps=validation.num_inference_steps,
    )
    images = (config.pairs.train_data_dir if control else config.data.instance_data_dir) or folder / IMAGES
    files = [path for path in sorted(images.glob("*.png")) if not path.name.startswith(".")]
    texts = flat_values(config)
    return {
        "images": [TrainingImage(file=file, caption=_caption(file), condition=condition_of(file)) for file in files],
        "kind": "control" if control else "subject",
        "base": public_name(config.model.pretrained_model_name_or_path or ""),
        **_words(config),
        **asdict(preset),
        **{name: option_text(name, texts.get(name)) for name in RUN_OPTIONS},
    }


def _words(config: DreamBoothConfig | ControlNetConfig) -> dict[str, Any]:
    """Return the words of a subject's prompts, or the annotator of a control."""
    if isinstance(config, ControlNetConfig):
        return {"annotator": config.control.annotator}
    prompt = config.data.instance_prompt or ""
    prefix, token, subject = split_prompts(prompt, config.prior.class_prompt or "") or ("", prompt, "")
    return {"subject": subject, "token": token, "prompt_prefix": prefix}


def _caption(image: Path) -> str:
    file = image.with_suffix(".txt")
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
