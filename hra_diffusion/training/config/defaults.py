"""What a run uses where it was not told: the embedded base and its settings, the prompts found, an output folder."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import hra_diffusion
from hra_diffusion.errors import ModelError
from hra_diffusion.training.config import DreamBoothConfig, RunConfig, TrainingConfig
from hra_diffusion.training.config.file import flat_values, read_toml, with_values

if TYPE_CHECKING:  # that one imports torch
    from hra_diffusion.training.data.subjects import Subject

PROJECT = Path(hra_diffusion.__file__).resolve().parent.parent
"""The checkout: assets and configs lie beside the package."""

DEFAULT_STEPS = 400

EMBEDDED_BASE = PROJECT / "assets" / "emoji-sd"


Config = TypeVar("Config", bound=TrainingConfig)


def embedded_defaults(kind: type[Config], name: str) -> Config:
    """Read a file of configs/ that fits the embedded base, with its paths found from the project's checkout.

    Where there is no checkout (an installed package), the bare defaults.
    """
    path = PROJECT / "configs" / name
    if not path.exists():
        return kind()
    config = read_toml(path, kind())
    values = flat_values(config)
    folders = {key: values[key] for key in ("instance_data_dir", "train_data_dir") if values.get(key)}
    found: dict[str, Any] = {key: _seen_from_here(PROJECT / folder) for key, folder in folders.items()}
    if base := config.model.pretrained_model_name_or_path:
        found["pretrained_model_name_or_path"] = str(_seen_from_here(PROJECT / base))
    return with_values(config, found)


def find_model(name: str) -> str:
    """Return a model's name or a folder, with its path where it is in the checkout and not in the working directory."""
    here, there = Path(name), PROJECT / name
    return str(there) if there.is_dir() and not here.is_dir() else name


def resolve(config: DreamBoothConfig, subjects: "Sequence[Subject]") -> DreamBoothConfig:
    """Fill in the output folder, and the prompts of a single subject; those of several stay in their folders.

    Raises:
        ModelError: no model was named and the embedded base is not there.
    """
    check_model_named(config.model.pretrained_model_name_or_path)
    images = config.data.instance_data_dir or Path()
    values: dict[str, Any] = {"output_dir": config.run.output_dir or Path("outputs", images.resolve().name)}
    if len(subjects) == 1:
        values |= {"instance_prompt": subjects[0].prompt, "class_prompt": subjects[0].class_prompt}
    return with_values(config, values)


def check_model_named(model: str | None) -> None:
    """Raise ModelError when no model was named and the embedded base is not there."""
    if model is None or (Path(model).resolve() == EMBEDDED_BASE and not EMBEDDED_BASE.is_dir()):
        raise ModelError(
            f"The embedded base is not at {EMBEDDED_BASE}, where the project's sources have it: "
            "name a folder or a hub model with --pretrained_model_name_or_path."
        )


def number_of_steps(run: RunConfig, a_pass: int, processes: int) -> int:
    """Return the optimizer steps of a run, where a pass over its images shows ``a_pass`` of them."""
    if run.max_train_steps or not run.num_train_epochs:
        return run.max_train_steps or DEFAULT_STEPS
    a_step = run.train_batch_size * run.gradient_accumulation_steps * processes
    return math.ceil(run.num_train_epochs * a_pass / a_step)


def _seen_from_here(path: Path) -> Path:
    """Return the path relative to the working directory, if below it: a saved config then moves with the folder."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
