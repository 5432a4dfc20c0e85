"""Defaults of a run: the embedded base and its settings, the subjects' prompts, the output folder."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hra_diffusion.errors import ModelError
from hra_diffusion.formats.run_folder import is_run
from hra_diffusion.resources import DATA, find_config, find_data
from hra_diffusion.training.config import ControlNetConfig, DreamBoothConfig, RunConfig, TrainingConfig
from hra_diffusion.training.config.file import convert_setting, flat_values, overridden_by, read_toml, with_values

if TYPE_CHECKING:  # it imports torch
    from hra_diffusion.training.data.subjects import Subject

logger = logging.getLogger(__name__)

DEFAULT_STEPS = 400

EMBEDDED_BASE = DATA / "assets" / "emoji-sd"

Config = TypeVar("Config", bound=TrainingConfig)

_EMBEDDED: Mapping[type[TrainingConfig], str] = {
    DreamBoothConfig: "embedded.toml",
    ControlNetConfig: "embedded_control.toml",
}
"""Files of configs/ that suit the embedded base."""


def embedded_defaults(kind: type[Config], name: str) -> Config:
    """Read the settings for the embedded base from a file of configs/, with paths into the project's data."""
    config = read_toml(DATA / "configs" / name, kind())
    values = flat_values(config)
    folders = {key: values[key] for key in ("instance_data_dir", "train_data_dir") if values.get(key)}
    paths: dict[str, Any] = {key: _relative_to_cwd(DATA / folder) for key, folder in folders.items()}
    if base := config.model.pretrained_model_name_or_path:
        paths["pretrained_model_name_or_path"] = str(_relative_to_cwd(DATA / base))
    return with_values(config, paths)


def complete_settings(kind: type[Config], flags: Mapping[str, Any]) -> Config:
    """Complete the given flags: flags override the file of ``--config``, which overrides the defaults.

    If no model is named, the embedded base is used, and the defaults are those of a file in configs/ that suits it.

    Args:
        kind: the kind of run.
        flags: the given flags, by name.

    Raises:
        ConfigError: the file cannot be read, or a value is out of its range.
    """
    given = {name: value for name, value in flags.items() if value is not None and name != "config"}
    path = flags.get("config") and find_config(flags["config"])
    usual = flat_values(kind())
    in_file = flat_values(read_toml(path, kind())) if path else usual
    named = given.get("pretrained_model_name_or_path", in_file["pretrained_model_name_or_path"])
    default = kind() if named else embedded_defaults(kind, _EMBEDDED[kind])
    config = read_toml(path, default) if path else default
    if path and "resume_from_checkpoint" in given and "output_dir" not in given:
        config = _in_run_folder(config, path)
    config = _resolve_data_paths(with_values(config, {**overridden_by(given), **flags}))
    if config.adapter.init_adapter is None:
        return config
    from hra_diffusion.training.config.init_adapter import with_initial_settings  # imports torch: not for --help

    changed = [name for name, value in in_file.items() if value != usual[name]]
    return with_initial_settings(config, {*given, *changed})


def make_config(kind: type[Config], **settings: Any) -> Config:
    """Make the settings of a run from flags by name, as the command line does.

    >>> make_config(DreamBoothConfig, instance_data_dir="photos/dog", instance_prompt="a photo of a sks dog", rank=16)

    Raises:
        ConfigError: a name is unknown (the nearest is suggested), or a value has the wrong type or range.
    """
    return complete_settings(kind, {name: convert_setting(kind, name, value) for name, value in settings.items()})


def resolve(config: DreamBoothConfig, subjects: "Sequence[Subject]") -> DreamBoothConfig:
    """Fill in the output folder and the prompts of a single subject; several subjects keep theirs in their folders.

    Raises:
        ModelError: no model is named and the embedded base does not exist.
    """
    check_model_named(config.model.pretrained_model_name_or_path)
    images = config.data.instance_data_dir or Path()
    values: dict[str, Any] = {"output_dir": config.run.output_dir or Path("outputs", images.resolve().name)}
    if len(subjects) == 1:
        values |= {"instance_prompt": subjects[0].prompt, "class_prompt": subjects[0].class_prompt}
    return with_values(config, values)


def check_model_named(model: str | None) -> None:
    """Raise ModelError if no model is named and the embedded base does not exist."""
    if model is None or (Path(model).resolve() == EMBEDDED_BASE and not EMBEDDED_BASE.is_dir()):
        raise ModelError(
            f"The embedded base is not at {EMBEDDED_BASE}, where this project has it: "
            "name a folder or a hub model with --pretrained_model_name_or_path."
        )


def number_of_steps(run: RunConfig, images_per_epoch: int, processes: int) -> int:
    """Return the number of optimizer steps of a run."""
    if run.max_train_steps or not run.num_train_epochs:
        return run.max_train_steps or DEFAULT_STEPS
    images_per_step = run.train_batch_size * run.gradient_accumulation_steps * processes
    return math.ceil(run.num_train_epochs * images_per_epoch / images_per_step)


def _in_run_folder(config: Config, path: Path) -> Config:
    """Return a run's settings with the folder of its config.toml as the output folder: a run may have been moved."""
    folder, recorded = path.parent, config.run.output_dir
    if path.name != "config.toml" or not is_run(folder) or (recorded and recorded.resolve() == folder.resolve()):
        return config
    logger.warning(
        "%s is a run's own settings: the run resumes in %s, where it lies now, and not in %s. --output_dir chooses "
        "another folder.",
        path,
        folder,
        recorded,
    )
    return with_values(config, {"output_dir": folder})


def _resolve_data_paths(config: Config) -> Config:
    """Return settings that name the project's data by paths of this installation; other paths stay."""
    values = flat_values(config)
    paths = {name: find_data(path) for name in ("instance_data_dir", "train_data_dir") if (path := values.get(name))}
    model = config.model.pretrained_model_name_or_path
    return with_values(config, {**paths, "pretrained_model_name_or_path": model and find_data(model)})


def _relative_to_cwd(path: Path) -> Path:
    """Return the relative form of a path below the working directory, so that a saved config moves with the folder."""
    cwd = Path.cwd()
    return path.relative_to(cwd) if path.is_relative_to(cwd) else path
