"""``hra-diffusion generate``: images from prompts with an adapter, a control or both, as the pipeline draws them."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.errors import ConfigError, ModelError
from hra_diffusion.training.config import ControlNetConfig, DreamBoothConfig, TrainingConfig
from hra_diffusion.training.config.defaults import find_model
from hra_diffusion.training.config.file import read_run


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Draw images with an adapter, a control or both.

    Settings that are left out are those of the run that made the adapter, or else the control.
    """

    adapter: Path | None = None
    """The adapter's folder, or the output folder of the run that made it."""
    control: Path | None = None
    """Folder of a control, or the output folder of its run: images follow image."""
    image: Path | None = None
    """What the control follows: an image, which its annotator reads."""
    annotated: bool = False
    """The image is a condition already."""
    control_strength: float = 1.0
    """Of the control; 0 is none."""
    control_start: float = 0.0
    """Where in the denoising range it begins to act, from 0, noise, …"""
    control_end: float = 1.0
    """… to 1, the finished image."""
    prompt: str
    """What to draw."""
    negative_prompt: str | None = None
    """What to keep away from."""
    pretrained_model_name_or_path: str | None = None
    """The base model, a single .safetensors file too; the one that was trained on by default."""
    seed: int = 0
    """Decides the image; further ones take seed + 1, …"""
    num_images: int = 1
    """How many images."""
    num_inference_steps: int | None = None
    """Denoising steps; the training run's previews' by default."""
    guidance_scale: float | None = None
    """Strength of classifier-free guidance; the training run's previews' by default."""
    height: int | None = None
    """In pixels; the training resolution by default."""
    width: int | None = None
    """In pixels; the training resolution by default."""
    output_dir: Path = Path()
    """Folder for the images, which are named after prompt and seed."""


_OF_CONTROL = ("annotated", "control_strength", "control_start", "control_end")
_DRAWING = ("negative_prompt", "num_inference_steps", "guidance_scale", "height", "width")


def main(arguments: Sequence[str]) -> None:
    """Draw the images and print their paths."""
    config = parse_settings(GenerateConfig, arguments, prog="hra-diffusion generate")
    if config.adapter is None and config.control is None:
        raise ConfigError("There is nothing to draw with: name a folder with --adapter or --control.")
    if (config.control is None) != (config.image is None):
        raise ConfigError("A control follows an image: give --control and --image together, or neither.")
    if config.control and not config.control.is_dir():
        raise ConfigError(f"There is no folder {config.control}: name a control's, or its run's, with --control.")
    ignored = [name for name in _OF_CONTROL if getattr(config, name) != getattr(GenerateConfig, name)]
    if ignored and not config.control:
        raise ConfigError(f"--{ignored[0]} is of a control, and there is none: add --control and --image.")
    for path in generate(config):
        print(path)


def generate(config: GenerateConfig) -> list[Path]:
    """Draw and save the images of a command; returns their paths.

    Raises:
        HRAError: the adapter, the control, the image or the model cannot be used, or the output folder not be written.
    """
    from accelerate import PartialState  # these import torch and diffusers: not for --help

    from hra_diffusion.formats.files import check_writable, write_file
    from hra_diffusion.pipelines import base_model, generate_image, load_hra_weights, load_pipeline
    from hra_diffusion.pipelines.components import size_multiple
    from hra_diffusion.pipelines.models import image_name

    check_writable(config.output_dir)
    source = config.adapter or config.control
    assert source
    model = config.pretrained_model_name_or_path or base_model(source)
    if not model:
        raise ModelError(f"{source} does not say its base: add --pretrained_model_name_or_path.")
    run, side = _run(config)
    pipe = load_pipeline(find_model(model), **run.model.loading).to(PartialState().device)
    if config.adapter:
        load_hra_weights(pipe, config.adapter)
    options = _options(config, run, side)
    for name in ("height", "width"):
        if (options[name] or 0) % (step := size_multiple(pipe)):
            raise ConfigError(f"--{name} is {options[name]}: give a multiple of {step}.")
    paths: list[Path] = []
    with _guiding(config, pipe):
        for seed in range(config.seed, config.seed + config.num_images):
            paths.append(config.output_dir / image_name(config.prompt, seed))
            write_file(paths[-1], generate_image(pipe, config.prompt, seed, **options).save)
    return paths


def _guiding(config: GenerateConfig, pipe: Any) -> AbstractContextManager[None]:
    """Let the control act within a ``with`` block, if there is one."""
    if not (config.control and config.image):
        return nullcontext()
    from hra_diffusion.control import load_hra_control
    from hra_diffusion.control.conditions import read_condition, read_control_image
    from hra_diffusion.formats.images import parse_color

    control = load_hra_control(pipe, config.control)
    run = read_run(config.control, ControlNetConfig())
    background = parse_color(run.pairs.background_color)
    annotator, annotated = control.annotator, config.annotated
    return control.guiding(
        pipe,
        read_condition(config.image, annotator) if annotated else read_control_image(config.image, annotator, background),
        strength=config.control_strength,
        start=config.control_start,
        end=config.control_end,
        annotated=annotated,
    )


def _run(config: GenerateConfig) -> tuple[TrainingConfig, int | None]:
    """Return the settings of the run that made the adapter, or else the control, and the side of its images."""
    if config.adapter:
        run = read_run(config.adapter, DreamBoothConfig())
        return run, run.data.resolution
    assert config.control
    run = read_run(config.control, ControlNetConfig())
    return run, run.pairs.resolution


def _options(config: GenerateConfig, run: TrainingConfig, side: int | None) -> dict[str, Any]:
    """Collect what the pipeline is told: the command's settings over those of the training run."""
    told = {name: getattr(config, name) for name in _DRAWING}
    return run.validation.options(side) | {name: value for name, value in told.items() if value is not None}
