"""``hra-diffusion generate``: pictures from prompts with an adapter, the same as the pipeline draws in Python."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.errors import ConfigError, ModelError
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config_file import read_run
from hra_diffusion.training.defaults import find_model


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Draw pictures with an adapter; settings that are left out are those of the run that made it."""

    adapter: Path
    """The adapter's folder, or the output folder of the run that made it."""
    prompt: str
    """What to draw."""
    negative_prompt: str | None = None
    """What to keep away from."""
    pretrained_model_name_or_path: str | None = None
    """The base model, a single .safetensors file too; the one the adapter was trained on by default."""
    seed: int = 0
    """Decides the picture; further ones take seed + 1, …"""
    num_images: int = 1
    """How many pictures."""
    num_inference_steps: int | None = None
    """Denoising steps; the training run's previews' by default."""
    guidance_scale: float | None = None
    """Strength of classifier-free guidance; the training run's previews' by default."""
    height: int | None = None
    """In pixels; the training resolution by default."""
    width: int | None = None
    """In pixels; the training resolution by default."""
    output_dir: Path = Path()
    """Folder for the pictures, which are named after prompt and seed."""


_DRAWING = ("negative_prompt", "num_inference_steps", "guidance_scale", "height", "width")


def main(arguments: Sequence[str]) -> None:
    """Draw the pictures and print their paths."""
    config = parse_settings(GenerateConfig, arguments, prog="hra-diffusion generate")
    if config.num_images < 1:
        raise ConfigError(f"--num_images is {config.num_images}: give a number at least 1.")
    for path in generate(config):
        print(path)


def generate(config: GenerateConfig) -> list[Path]:
    """Draw and save the pictures of a command; returns their paths.

    Raises:
        HRAError: the adapter or the model cannot be used, or the output folder not be written.
    """
    from accelerate import PartialState  # these import torch and diffusers: not for --help

    from hra_diffusion.formats.files import write_file
    from hra_diffusion.pipelines import base_model, draw, load_hra_weights, load_pipeline
    from hra_diffusion.training.checkpoint import check_writable
    from hra_diffusion.training.portrait import picture_name

    check_writable(config.output_dir)
    model = config.pretrained_model_name_or_path or base_model(config.adapter)
    if not model:
        raise ModelError(f"The adapter {config.adapter} does not say its base: add --pretrained_model_name_or_path.")
    _, run = read_run(config.adapter, DreamBoothConfig())
    pipe = load_pipeline(find_model(model), **run.model.loading).to(PartialState().device)
    load_hra_weights(pipe, config.adapter)
    options = _options(config, run)
    paths: list[Path] = []
    for seed in range(config.seed, config.seed + config.num_images):
        paths.append(config.output_dir / picture_name(config.prompt, seed))
        write_file(paths[-1], draw(pipe, config.prompt, seed, **options).save)
    return paths


def _options(config: GenerateConfig, run: DreamBoothConfig) -> dict[str, Any]:
    """Collect what the pipeline is told: the command's settings over those of the adapter's training run."""
    options = {
        "num_inference_steps": run.preview.num_inference_steps,
        "guidance_scale": run.preview.guidance_scale,
        "height": run.data.resolution,
        "width": run.data.resolution,
    }
    told = {name: getattr(config, name) for name in _DRAWING}
    return options | {name: value for name, value in told.items() if value is not None}
