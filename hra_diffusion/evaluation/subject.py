"""Evaluation of an adapter: fidelity to its subject and its prompts, and drift of everything else."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from accelerate import PartialState
from PIL import Image

from hra_diffusion.errors import ConfigError, HRAError, ImageError
from hra_diffusion.evaluation.config import EvaluateConfig
from hra_diffusion.formats.files import check_writable
from hra_diffusion.formats.images import read_image
from hra_diffusion.formats.run_folder import results_folder, run_file
from hra_diffusion.metrics import (
    EvaluationPlan,
    Generations,
    MetricModels,
    Report,
    load_metric_models,
    make_evaluation_plan,
    measure_subject,
)
from hra_diffusion.pipelines import find_base, load_base, load_hra_weights
from hra_diffusion.pipelines.kinds import kind_of
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.progress import tracked
from hra_diffusion.resources import find_data
from hra_diffusion.text import shorten
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import read_run
from hra_diffusion.training.data.buckets import checked_resolution
from hra_diffusion.training.data.held_out import split_examples
from hra_diffusion.training.data.inventory import HELD_OUT, entries, image_files, masked
from hra_diffusion.training.data.subjects import Subject, read_examples, subject_folders

logger = logging.getLogger(__name__)

_REFERENCE_SIDE = 512
"""Shortest side of large real images in pixels: encoders take 224 to 448."""

Progress = Callable[[int, int], None]
"""A callback for the numbers of finished images and of all images."""


def evaluate_run(folder: Path, pipe: Pipeline, progress: Progress | None = None) -> str:
    """Evaluate a finished training run briefly, with 16 images and local models.

    Args:
        folder: the run's output folder.
        pipe: the run's pipeline, with the adapter.
        progress: a callback for the numbers of finished images and of all images.

    Returns:
        The table in Markdown, or the reason for its absence: missing models or settings raise no error.
    """
    config = EvaluateConfig(adapter=folder, num_contexts=4, num_images=1)
    try:
        return evaluate_adapter(config, pipe, progress=progress, local_files_only=True).to_markdown()
    except HRAError as error:
        return f"Not measured: {error}"


def evaluate_adapter(
    config: EvaluateConfig,
    pipe: Pipeline | None = None,
    *,
    progress: Progress | None = None,
    local_files_only: bool = False,
) -> Report:
    """Generate images with an adapter and without, measure them and write the results.

    Args:
        config: the settings.
        pipe: a pipeline with the adapter; loaded by default.
        progress: a callback for the numbers of finished images and of all images.
        local_files_only: download no models for the metrics.

    Raises:
        HRAError: a setting, the adapter, a model or an image is unusable, or the output folder is not writable.
    """
    output = config.output_dir or results_folder(config.adapter)
    check_writable(output)
    evaluation, loaded = prepare_evaluation(config, pipe, local_files_only)
    if pipe is None:
        load_hra_weights(loaded, config.adapter)
    generations = Generations(plan=evaluation.plan)
    for count in generations.generate(loaded):
        if progress:
            progress(count, generations.num_images)
    report = evaluation.report_on(generations, config.adapter)
    report.write(output)
    return report


@dataclass(frozen=True, kw_only=True)
class SubjectEvaluation:
    """Everything that adapters of one subject are measured with."""

    plan: EvaluationPlan
    models: MetricModels
    references: Sequence[Image.Image]
    """Real images of the subject."""
    about: Mapping[str, str]
    """Entries of the report: base model, folder of real images."""

    def report_on(self, generations: Generations, adapter: Path) -> Report:
        """Measure the generated images of an adapter."""
        report = measure_subject(generations, list(self.references), self.models)
        return replace(report, about={**self.about, "adapter": str(adapter)})


def prepare_evaluation(
    config: EvaluateConfig, pipe: Pipeline | None = None, local_files_only: bool = False
) -> tuple[SubjectEvaluation, Pipeline]:
    """Load models and real images, and plan the images to generate.

    Args:
        config: the settings; missing ones are those of the adapter's training run.
        pipe: a pipeline; the base model's, without an adapter, is loaded by default.
        local_files_only: download no models for the metrics.

    Raises:
        HRAError: a setting, a model or an image is unusable.
    """
    run = read_run(config.adapter, DreamBoothConfig())
    base = find_base([config.adapter], config.pretrained_model_name_or_path, config.base_options)
    by_default = config.reference_dir is None
    config = _complete(config, run)
    assert config.reference_dir and config.instance_prompt
    device = PartialState().device or "cpu"
    models = load_metric_models(
        str(base.name), clip=config.clip, dino=config.dino, device=device, local_files_only=local_files_only
    )
    pipe = load_base(base, **config.placement) if pipe is None else pipe
    scales = (config.guidance_scale, run.validation.guidance_scale, kind_of(pipe).guidance_scale)
    plan = make_evaluation_plan(
        config.instance_prompt,
        config.class_prompt,
        models.vocabulary,
        contexts=config.num_contexts,
        seeds=range(config.seed, config.seed + config.num_images),
        resolution=checked_resolution(config.resolution, pipe),
        num_inference_steps=config.num_inference_steps or run.validation.num_inference_steps,
        guidance_scale=next(scale for scale in scales if scale is not None),
        batch_size=config.batch_size,
    )
    held_out = _split_off(run, config.reference_dir) if by_default else None
    trains_on = run.data.instance_data_dir and config.reference_dir.resolve() == run.data.instance_data_dir.resolve()
    if trains_on and held_out is None:
        models.notes.append(
            f"The real images are the training images: put held-out ones into {config.reference_dir / HELD_OUT}."
        )
    evaluation = SubjectEvaluation(
        plan=plan,
        models=models,
        references=_read_references(config.reference_dir, held_out),
        about={"base": str(base.name), "reference_dir": str(config.reference_dir)},
    )
    return evaluation, pipe


def _complete(config: EvaluateConfig, run: DreamBoothConfig) -> EvaluateConfig:
    """Fill in missing settings from the training run.

    Raises:
        ConfigError: a setting is missing in both.
    """
    from_run = {
        "instance_prompt": run.data.instance_prompt,
        "class_prompt": run.prior.class_prompt,
        "resolution": run.data.largest_resolution,
        "reference_dir": _reference_folder(run.data.instance_data_dir),
    }
    config = replace(config, **{name: value for name, value in from_run.items() if getattr(config, name) is None})
    required = ("instance_prompt", "reference_dir")
    if missing := [f"--{name}" for name in required if not getattr(config, name)]:
        has_run = run_file(config.adapter, "config.toml")
        reason = "has several subjects, and one is measured" if has_run else "has no config.toml of its training run"
        raise ConfigError(f"The adapter {config.adapter} {reason}: add {' and '.join(missing)}.")
    return config


def _split_off(run: DreamBoothConfig, folder: Path) -> list[Path] | None:
    """Return the images of a subject's folder that --validation_split has held out; None if all are trained on."""
    if not run.data.validation_split or folder.name == HELD_OUT:
        return None
    subject = Subject(folder=folder, prompt="", class_prompt=None)
    examples = read_examples(subject, replace(run.data, mask_data_dir=None, alpha_mask=False))
    _, held_out = split_examples(examples, run.data.validation_split, run.run.seed)
    return [example.photo.path for example in held_out]


def _read_references(folder: Path, only: Sequence[Path] | None = None) -> list[Image.Image]:
    """Read the real images one by one, scaled down to a size above that of all encoders.

    Args:
        folder: the folder of the images.
        only: the images to read; by default all in the folder.

    Raises:
        ImageError: no image can be read.
    """
    images: list[Image.Image] = []
    refused: list[str] = []
    if masks := [path.name for path in entries(folder) if masked(path) and path not in image_files(folder)]:
        logger.warning("Not used in %s: %s (masks).", folder, shorten(masks))
    for path in tracked(image_files(folder) if only is None else only, "reading images"):
        try:
            images.append(read_image(path, shortest_side=_REFERENCE_SIDE))
        except ImageError as error:
            refused.append(str(error))
    if not images:
        raise ImageError(f"The folder {folder} holds no images to measure with: add some. {' '.join(refused)}".rstrip())
    if refused:
        logger.warning("Left out %d of %d files. %s", len(refused), len(refused) + len(images), " ".join(refused))
    return images


def _reference_folder(instance_data_dir: Path | None) -> Path | None:
    """Return the folder of a run's real images, held-out ones if any; None for several subjects."""
    if instance_data_dir is None:
        return None
    root = find_data(instance_data_dir)
    if (root / HELD_OUT).is_dir():
        return root / HELD_OUT
    folder, *others = subject_folders(root) if root.is_dir() else [root]
    if others:
        return None
    return folder / HELD_OUT if (folder / HELD_OUT).is_dir() else folder
