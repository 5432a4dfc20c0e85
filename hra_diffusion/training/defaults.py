"""What a run uses where it was not told: the embedded base, a subject's own prompts, an output folder.

A picture folder may hold a ``subject.toml`` with ``instance_prompt`` and ``class_prompt``; without it and without the
flags the folder's name says what the pictures show: ``dog6`` → "a photo of a sks dog".
"""

import logging
import re
from pathlib import Path
from typing import Any

import hra_diffusion
from hra_diffusion.errors import ConfigError, ImageError, ModelError
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config_file import read_toml, tomllib, with_values

logger = logging.getLogger(__name__)

PROJECT = Path(hra_diffusion.__file__).resolve().parent.parent
"""The checkout: assets and configs lie beside the package."""

EMBEDDED_BASE = PROJECT / "assets" / "emoji-sd"

RARE_WORD = "sks"


def embedded_defaults() -> DreamBoothConfig:
    """Read the settings that fit the embedded base, with its paths found from the project's checkout.

    Where there is no checkout (an installed package), the bare defaults.
    """
    path = PROJECT / "configs" / "embedded.toml"
    if not path.exists():
        return DreamBoothConfig()
    config = read_toml(path, DreamBoothConfig())
    base, pictures = config.model.pretrained_model_name_or_path, config.data.instance_data_dir
    return with_values(
        config,
        {
            "pretrained_model_name_or_path": base and str(_seen_from_here(PROJECT / base)),
            "instance_data_dir": pictures and _seen_from_here(PROJECT / pictures),
        },
    )


def find_model(name: str) -> str:
    """Return the model's name, or its path where it is a folder of the checkout and not of the working directory."""
    here, there = Path(name), PROJECT / name
    return str(there) if there.is_dir() and not here.is_dir() else name


def resolve(config: DreamBoothConfig) -> DreamBoothConfig:
    """Fill in the model, the prompts and the output folder.

    Raises:
        ModelError: no model was named and the embedded base is not there.
        ImageError: there is no folder with the subject's pictures.
        ConfigError: a prompt is missing and cannot be derived.
    """
    model = config.model.pretrained_model_name_or_path
    if model is None or (Path(model).resolve() == EMBEDDED_BASE and not EMBEDDED_BASE.is_dir()):
        raise ModelError(
            f"The embedded base is not at {EMBEDDED_BASE}, where the project's sources have it: "
            "name a folder or a hub model with --pretrained_model_name_or_path."
        )
    folder = config.data.instance_data_dir
    if folder is None or not folder.is_dir():
        raise ImageError(
            f"There is no picture folder {folder or '(none was named)'}: name one with --instance_data_dir."
        )
    return with_values(
        config,
        {"output_dir": config.run.output_dir or Path("outputs", folder.resolve().name), **_prompts(config, folder)},
    )


def _prompts(config: DreamBoothConfig, folder: Path) -> dict[str, str | None]:
    """Choose the instance and class prompts: as told, else from the folder's subject.toml, else from its name."""
    told = {"instance_prompt": config.data.instance_prompt, "class_prompt": config.prior.class_prompt}
    described = _subject_file(folder)
    prompts = {name: prompt or described.get(name) for name, prompt in told.items()}
    noun = " ".join(re.findall(r"[^\W\d_]+", folder.resolve().name))
    if not any(prompts.values()) and noun:
        prompts = {"instance_prompt": f"a photo of a {RARE_WORD} {noun}", "class_prompt": f"a photo of a {noun}"}
        logger.warning('No --instance_prompt: using "%s", after the folder\'s name.', prompts["instance_prompt"])
    if not prompts["instance_prompt"]:
        raise ConfigError(
            "--instance_prompt is missing: say what the pictures show, with a rare word for the subject, "
            f'for example "a photo of a {RARE_WORD} dog".'
        )
    if config.prior.with_prior_preservation and not prompts["class_prompt"]:
        raise ConfigError(
            "--class_prompt is missing, which prior preservation needs: give the instance prompt without its rare "
            "word, or pass --no_with_prior_preservation."
        )
    return prompts


def _subject_file(folder: Path) -> dict[str, Any]:
    path = folder / "subject.toml"
    if not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML ({error}): correct or remove it.") from error


def _seen_from_here(path: Path) -> Path:
    """Return the path relative to the working directory, if below it: a saved config then moves with the folder."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
