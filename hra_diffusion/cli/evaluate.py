"""``hra-diffusion evaluate``: measures an adapter, and leaves the numbers and the images they were taken from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.errors import ConfigError, HRAError
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.defaults import find_model
from hra_diffusion.training.config.file import read_run

if TYPE_CHECKING:
    from hra_diffusion.metrics.report import Report


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Measure an adapter; settings that are left out are those of the run that made it."""

    adapter: tyro.conf.Positional[Path]
    """The output folder of a run, or an adapter's folder."""
    pretrained_model_name_or_path: str | None = None
    """The base model; the one the adapter was trained on by default."""
    instance_prompt: str | None = None
    """What the subject is called; the training run's by default."""
    class_prompt: str | None = None
    """What its class is called; the training run's by default."""
    reference_dir: Path | None = None
    """Real images of the subject; held_out in its image folder by default, else that folder itself."""
    clip: str | None = None
    """A CLIP by folder or name; by default the embedded judge for emoji-sd, else CLIP ViT-L/14."""
    dino: str | None = None
    """A DINO by folder or name; by default none for emoji-sd, else DINO ViT-S/16 where it can be had."""
    num_contexts: int = 8
    """In how many contexts the subject is drawn; half as many prompts of its class and of other things join them."""
    num_images: int = 4
    """Seeds a prompt: seed, seed + 1, …"""
    seed: int = 0
    """The first seed."""
    num_inference_steps: int | None = None
    """Denoising steps; the training run's previews' by default."""
    guidance_scale: float | None = None
    """Strength of classifier-free guidance; the training run's previews' by default."""
    resolution: int | None = None
    """Side of the images in pixels; the training resolution by default."""
    batch_size: int = 4
    """Images drawn at once; with 1 they are, to the bit, what generate draws."""
    output_dir: Path | None = None
    """Folder for metrics.json, metrics.md and metrics.png; the adapter's, or its run's, by default."""


def main(arguments: Sequence[str]) -> None:
    """Measure, write the results and print the table."""
    config = parse_settings(EvaluateConfig, arguments, prog="hra-diffusion evaluate")
    print(evaluate(config).to_markdown())


def evaluate_run(folder: Path, pipe: Any) -> str:
    """Measure a run that has just ended, briefly: 16 images, nothing fetched. Never raises for what is missing.

    Args:
        folder: its output folder.
        pipe: its pipeline, with the adapter in it.

    Returns:
        The table, or why there is none.
    """
    config = EvaluateConfig(adapter=folder, num_contexts=4, num_images=1)
    try:
        return evaluate(config, pipe, local_files_only=True).to_markdown()
    except HRAError as error:
        return f"Not measured: {error}"


def evaluate(config: EvaluateConfig, pipe: Any = None, *, local_files_only: bool = False) -> "Report":
    """Draw, measure and write the results.

    Args:
        config: what to measure.
        pipe: a pipeline with the adapter in it; loaded by default.
        local_files_only: fetch no model that measures.

    Raises:
        HRAError: a setting, the adapter, a model or the images cannot be used, or the results not be written.
    """
    from accelerate import PartialState  # these import torch and more: not for --help
    from tqdm import tqdm

    from hra_diffusion.formats.files import check_writable
    from hra_diffusion.formats.run_folder import results_folder
    from hra_diffusion.metrics.evaluation import evaluate as measure
    from hra_diffusion.metrics.generation import Generations, make_plan
    from hra_diffusion.metrics.instruments import load_instruments
    from hra_diffusion.pipelines import load_hra_weights, load_pipeline
    from hra_diffusion.training.data.buckets import checked_resolution
    from hra_diffusion.training.data.dataset import HELD_OUT, image_files, read_images

    run = read_run(config.adapter, DreamBoothConfig())
    output = config.output_dir or results_folder(config.adapter)
    check_writable(output)
    config = _filled_in(config, run)
    assert config.reference_dir and config.instance_prompt and config.pretrained_model_name_or_path
    references = read_images(image_files(config.reference_dir), config.reference_dir)
    model = find_model(config.pretrained_model_name_or_path)
    device = pipe.device if pipe else PartialState().device or "cpu"
    instruments = load_instruments(
        model, clip=config.clip, dino=config.dino, device=device, local_files_only=local_files_only
    )
    if pipe is None:
        pipe = load_pipeline(model, **run.model.loading).to(device)
        load_hra_weights(pipe, config.adapter)
    plan = make_plan(
        config.instance_prompt,
        config.class_prompt,
        instruments.vocabulary,
        contexts=config.num_contexts,
        seeds=range(config.seed, config.seed + config.num_images),
        resolution=checked_resolution(config.resolution, pipe),
        num_inference_steps=config.num_inference_steps or run.validation.num_inference_steps,
        guidance_scale=run.validation.guidance_scale if config.guidance_scale is None else config.guidance_scale,
        batch_size=config.batch_size,
    )
    drawings = Generations(plan=plan)
    with tqdm(desc="measuring", total=drawings.total, unit="image") as bar:
        for done in drawings.draw(pipe):
            bar.update(done - bar.n)
    if run.data.instance_data_dir and config.reference_dir.resolve() == run.data.instance_data_dir.resolve():
        instruments.notes.append(
            f"The real images are those that were trained on: put others into {config.reference_dir / HELD_OUT}."
        )
    about = {"base": model, "adapter": str(config.adapter), "reference_dir": str(config.reference_dir)}
    report = replace(measure(drawings, references, instruments), about=about)
    report.write(output)
    return report


def _filled_in(config: EvaluateConfig, run: DreamBoothConfig) -> EvaluateConfig:
    """Take from the run what the command does not say.

    Raises:
        ConfigError: neither says it.
    """
    from hra_diffusion.formats.run_folder import of_run
    from hra_diffusion.pipelines import base_model

    from_run = {
        "pretrained_model_name_or_path": run.model.pretrained_model_name_or_path or base_model(config.adapter),
        "instance_prompt": run.data.instance_prompt,
        "class_prompt": run.prior.class_prompt,
        "resolution": run.data.resolution,
        "reference_dir": _real_images(run.data.instance_data_dir),
    }
    filled = replace(config, **{name: value for name, value in from_run.items() if getattr(config, name) is None})
    needed = ("pretrained_model_name_or_path", "instance_prompt", "reference_dir")
    if missing := [f"--{name}" for name in needed if not getattr(filled, name)]:
        known = of_run(config.adapter, "config.toml")
        why = "knows several subjects, of which one is measured" if known else "came without its run's config.toml"
        raise ConfigError(f"The adapter {config.adapter} {why}: add {' and '.join(missing)}.")
    return filled


def _real_images(trained_on: Path | None) -> Path | None:
    """Return the folder of images to compare with, those that were held out if there are some.

    None where the run had several subjects, of which one has to be meant.
    """
    from hra_diffusion.training.data.dataset import HELD_OUT
    from hra_diffusion.training.data.subjects import subject_folders

    if trained_on is None:
        return None
    root = Path(find_model(str(trained_on)))
    if (root / HELD_OUT).is_dir():
        return root / HELD_OUT
    folder, *others = subject_folders(root) if root.is_dir() else [root]
    if others:
        return None
    return folder / HELD_OUT if (folder / HELD_OUT).is_dir() else folder
