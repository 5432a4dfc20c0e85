"""``hra-diffusion generate``: generate images with an adapter, a control or both."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.cli.strengths import STRENGTH_HELP, parse_strength
from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines.prompt_weights import PromptSyntax
from hra_diffusion.training.config import ControlNetConfig, DreamBoothConfig, TrainingConfig
from hra_diffusion.training.config.base import BaseConfig, PlacementConfig
from hra_diffusion.training.config.file import read_run

if TYPE_CHECKING:
    from PIL.Image import Image

    from hra_diffusion.pipelines import Pipeline
    from hra_diffusion.pipelines.adapter_folders import Named
    from hra_diffusion.pipelines.image_to_image import ImageToImage


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(BaseConfig, PlacementConfig):
    """Generate images with an adapter, a control or both.

    Missing settings are taken from the training run of the adapter, or else of the control.
    """

    adapter: Path | None = None
    """The adapter's folder, or the output folder of its training run; with --bind also a folder of many adapters."""
    strength: Annotated[tuple[str, ...], tyro.conf.arg(help=STRENGTH_HELP)] = ("1",)
    bind: Literal["prompt", "tokens", "region"] | None = None
    """Bind adapters to their trigger word, which their training run has recorded: an adapter is active only if the
    prompt holds it (prompt), for the tokens of this word and its noun (tokens), or for these and a region of the image
    (region). By default, the adapter is active everywhere."""
    masks: tuple[str, ...] = ()
    """Regions for --bind region, ADAPTER=IMAGE for each adapter by its folder's name, white inside. By default, the
    cross-attention to the trigger word finds them."""
    region_prompts: tuple[str, ...] = ()
    """Prompts of the regions of --masks, ADAPTER=PROMPT for each adapter, with its trigger word: several subjects come
    out right. By default, all regions read --prompt."""
    control: Path | None = None
    """Control (ControlNet): its folder, or the output folder of its training run. It needs --image."""
    image: Path | None = None
    """Image for the control, whose annotator (preprocessor) makes the condition; or the start image of image to image
    (--denoising_strength) and inpainting (--mask_image)."""
    denoising_strength: float | None = None
    """Denoising strength of image to image, from 0 (the start image) to 1 (pure noise); 0.8 with a mask."""
    mask_image: Path | None = None
    """Mask of inpainting: white is repainted, black and transparent parts of --image are kept."""
    mask_blur: int = 4
    """Radius of the transition at the mask's edge, in pixels."""
    annotated: bool = False
    """Use the image as a finished condition, without the annotator (preprocessor)."""
    control_strength: float = 1.0
    """Strength of the control; 0 is no control."""
    control_start: float = 0.0
    """Start of the control in the denoising process: 0 is noise, 1 the finished image."""
    control_end: float = 1.0
    """End of the control in the denoising process: 0 is noise, 1 the finished image."""
    prompt: str
    """Prompt of the images, of any length and with the weights of A1111, such as (word:1.2)."""
    negative_prompt: str | None = None
    """Negative prompt: content to avoid."""
    prompt_syntax: PromptSyntax = "a1111"
    """Reading of the prompts: with weights and of any length (a1111), or as text up to the model's maximum length
    (plain), as in training and validation."""
    pretrained_model_name_or_path: str | None = None
    """Base model: folder, hub name or a single .safetensors file. By default the adapter's base model."""
    seed: int = 0
    """Random seed of the first image; further images have seed + 1, …"""
    num_images: int = 1
    """Number of images."""
    num_inference_steps: int | None = None
    """Denoising steps. By default those of the training run's validation."""
    guidance_scale: float | None = None
    """Guidance (CFG) scale. By default that of the training run's validation."""
    height: int | None = None
    """Height of the images in pixels. By default the training resolution."""
    width: int | None = None
    """Width of the images in pixels. By default the training resolution."""
    output_dir: Path = Path()
    """Folder for the images; their names are the prompt and the seed."""


_CONTROL_FLAGS = ("annotated", "control_strength", "control_start", "control_end")
_PIPELINE_FLAGS = ("num_inference_steps", "guidance_scale", "height", "width")


def main(arguments: Sequence[str]) -> None:
    """Generate the images and print their paths."""
    config = parse_settings(GenerateConfig, arguments, prog="hra-diffusion generate")
    if config.adapter is None and config.control is None:
        raise ConfigError("There is no adapter and no control: name a folder with --adapter or --control.")
    if config.bind and config.adapter is None:
        raise ConfigError("--bind needs adapters: name a folder with --adapter.")
    if config.masks and config.bind != "region":
        raise ConfigError("--masks are the regions of --bind region: add it, or leave out --masks.")
    if config.region_prompts and not config.masks:
        raise ConfigError("--region_prompts are those of the regions of --masks: add them, or leave it out.")
    if config.strength != GenerateConfig.strength and config.adapter is None:
        raise ConfigError("--strength is that of adapters: name a folder with --adapter, or give --control_strength.")
    parse_strength(config.strength)
    _check_images(config)
    if config.control and not config.control.is_dir():
        raise ConfigError(f"There is no folder {config.control}: name a control's, or its run's, with --control.")
    unused = [name for name in _CONTROL_FLAGS if getattr(config, name) != getattr(GenerateConfig, name)]
    if unused and not config.control:
        raise ConfigError(f"--{unused[0]} needs a control: add --control and --image.")
    from hra_diffusion.out_of_memory import explain_out_of_memory  # imports torch: not for --help

    with explain_out_of_memory("generating images", lambda: config.memory_flags):
        paths = generate_images(config)
    for path in paths:
        print(path)


def generate_images(config: GenerateConfig) -> list[Path]:
    """Generate and save the images; return their paths.

    Raises:
        HRAError: the adapter, the control, the image or the model is unusable, or the output folder is not writable.
    """
    # these import torch and diffusers: not for --help
    from hra_diffusion.formats.files import check_writable, write_file
    from hra_diffusion.pipelines import find_base, generate_image, load_base, load_hra_weights, prompt_options
    from hra_diffusion.pipelines.activation import set_hra_adapters
    from hra_diffusion.pipelines.adapter_folders import load_named_adapters, read_masks, read_region_prompts
    from hra_diffusion.pipelines.kinds import size_multiple
    from hra_diffusion.pipelines.models import image_name

    check_writable(config.output_dir)
    start_images = _start_images(config)
    strength = parse_strength(config.strength)
    source, named = _sources(config)
    masks, prompts = read_masks(config.masks, named), read_region_prompts(config.region_prompts, named)
    base = find_base([source], config.pretrained_model_name_or_path, config.base_options)
    run, side = _training_run(source, is_control=config.adapter is None)
    pipe = load_base(base, **config.placement)
    if config.bind:
        load_named_adapters(pipe, named, config.bind, strength, masks, prompts)
    elif config.adapter:
        load_hra_weights(pipe, config.adapter)
        set_hra_adapters(pipe, "default", strength)
    options = _options(config, run, side)
    for name in ("height", "width"):
        if (options[name] or 0) % (step := size_multiple(pipe)):
            raise ConfigError(f"--{name} is {options[name]}: give a multiple of {step}.")
    generate: Callable[..., Image] = partial(generate_image, pipe)
    if start_images:
        generate = _image_to_image(config, pipe, start_images, options).generate
    paths: list[Path] = []
    with _guiding(config, pipe):
        options |= prompt_options(pipe, config.prompt, config.negative_prompt, syntax=config.prompt_syntax)
        for seed in range(config.seed, config.seed + config.num_images):
            paths.append(config.output_dir / image_name(config.prompt, seed))
            write_file(paths[-1], generate(seed=seed, **options).save)
    return paths


def _check_images(config: GenerateConfig) -> None:
    """Raise ConfigError for images without a use, and for settings without their image."""
    starts = config.denoising_strength is not None or config.mask_image is not None
    if starts and config.control:
        raise ConfigError("--control takes --image as its own: leave out --denoising_strength and --mask_image.")
    if starts and config.image is None:
        raise ConfigError("--denoising_strength and --mask_image need a start image: add --image.")
    if not starts and (config.control is None) != (config.image is None):
        raise ConfigError(
            "A control needs an image: give --control and --image together, or neither. Image to image needs --image "
            "and --denoising_strength, inpainting --image and --mask_image."
        )
    if config.denoising_strength is not None and not 0 < config.denoising_strength <= 1:
        raise ConfigError(f"--denoising_strength is {config.denoising_strength:g}: give more than 0, and at most 1.")
    if config.mask_blur != GenerateConfig.mask_blur and config.mask_image is None:
        raise ConfigError("--mask_blur needs a mask: add --mask_image.")
    if config.mask_blur < 0:
        raise ConfigError(f"--mask_blur is {config.mask_blur}: give 0 or more pixels.")


def _start_images(config: GenerateConfig) -> "tuple[Image, Image | None] | None":
    """Read the start image and its mask, if any; None without a start image."""
    if config.image is None or config.control:
        return None
    from hra_diffusion.formats.images import read_image, read_layers
    from hra_diffusion.formats.masks import mask_of

    return read_image(config.image), mask_of(read_layers(config.mask_image).whole()) if config.mask_image else None


def _image_to_image(
    config: GenerateConfig, pipe: "Pipeline", images: "tuple[Image, Image | None]", options: dict[str, Any]
) -> "ImageToImage":
    """Return the image-to-image pipeline of the start image; remove its height and width from the options."""
    from hra_diffusion.pipelines.image_to_image import ImageToImage
    from hra_diffusion.pipelines.kinds import size_multiple

    (image, mask), step = images, size_multiple(pipe)
    height, width = (
        options.pop(name) or max(1, round(side / step)) * step
        for name, side in (("height", image.height), ("width", image.width))
    )
    strength = 0.8 if config.denoising_strength is None else config.denoising_strength
    return ImageToImage(pipe, image.resize((width, height)), strength, mask, config.mask_blur)


def _guiding(config: GenerateConfig, pipe: "Pipeline") -> AbstractContextManager[None]:
    """Return the context of the control; an empty one without a control."""
    if not (config.control and config.image):
        return nullcontext()
    from hra_diffusion.control import load_hra_control, read_condition, read_control_image
    from hra_diffusion.formats.images import parse_color

    control = load_hra_control(pipe, config.control)
    run = read_run(config.control, ControlNetConfig())
    background = parse_color(run.pairs.background_color)
    if config.annotated:
        image = read_condition(config.image, control.annotator)
    else:
        image = read_control_image(config.image, control.annotator, background)
    return control.guiding(
        pipe,
        image,
        strength=config.control_strength,
        start=config.control_start,
        end=config.control_end,
        annotated=config.annotated,
    )


def _sources(config: GenerateConfig) -> tuple[Path, "Named"]:
    """Return the folder with the settings of the images, and the adapters that --bind finds by the prompt."""
    source = config.adapter or config.control
    assert source
    if not (config.bind and config.adapter):
        return source, {}
    # these import torch and diffusers: not for --help
    from hra_diffusion.pipelines.adapter_folders import adapters_in, adapters_of_prompt
    from hra_diffusion.pipelines.prompts import plain_text

    folders = adapters_in(config.adapter)
    named = adapters_of_prompt(folders, plain_text(config.prompt, config.prompt_syntax))
    return next(iter(named), folders[0]), named


def _training_run(source: Path, *, is_control: bool) -> tuple[TrainingConfig, int | None]:
    """Return the settings of the training run of an adapter or a control, and its resolution."""
    if not is_control:
        run = read_run(source, DreamBoothConfig())
        return run, run.data.largest_resolution
    run = read_run(source, ControlNetConfig())
    return run, run.pairs.resolution


def _options(config: GenerateConfig, run: TrainingConfig, side: int | None) -> dict[str, Any]:
    """Return the pipeline's options: the command's settings over those of the training run."""
    flags = {name: getattr(config, name) for name in _PIPELINE_FLAGS}
    return run.validation.options(side) | {name: value for name, value in flags.items() if value is not None}
