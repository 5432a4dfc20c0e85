"""Evaluation of a control: agreement of images with their conditions, on held-out pairs."""

from collections.abc import Callable
from pathlib import Path

from accelerate import PartialState

from hra_diffusion.control import Annotator, fit, load_hra_control
from hra_diffusion.errors import ConfigError, ModelError
from hra_diffusion.evaluation.config import EvaluateControlConfig
from hra_diffusion.formats.files import check_writable
from hra_diffusion.formats.images import parse_color, read_image
from hra_diffusion.metrics import Trial, load_metric_models
from hra_diffusion.metrics.control import write_control_report
from hra_diffusion.metrics.frechet import load_inception
from hra_diffusion.pipelines import find_base, load_base
from hra_diffusion.resources import find_data
from hra_diffusion.training.config import ControlNetConfig
from hra_diffusion.training.config.file import read_toml, with_values
from hra_diffusion.training.controlnet import make_condition
from hra_diffusion.training.data.buckets import checked_resolution
from hra_diffusion.training.data.inventory import HELD_OUT
from hra_diffusion.training.data.pairs import read_pairs


def evaluate_control(config: EvaluateControlConfig, *, progress: Callable[[int, int], None] | None = None) -> str:
    """Generate images with a control and without, measure them and write the results.

    Args:
        config: the settings.
        progress: a callback for the numbers of finished images and of all images.

    Returns:
        The table in Markdown.

    Raises:
        HRAError: the run, its model or a pair is unusable, or the output folder is not writable.
    """
    if not (config.run / "config.toml").is_file():
        raise ConfigError(f"{config.run} is no output folder of train-control: it holds no config.toml.")
    run = read_toml(config.run / "config.toml", ControlNetConfig())
    output = config.output_dir or config.run
    check_writable(output)
    root = run.pairs.train_data_dir and find_data(run.pairs.train_data_dir)
    folder = config.pairs_dir or (root and root / HELD_OUT)
    if folder is None or not folder.is_dir():
        raise ConfigError(f"There are no held-out pairs in {folder or 'the run'}: name a folder with --pairs_dir.")
    base = find_base([config.run], config.pretrained_model_name_or_path, config.base_options)
    pipe, device = load_base(base, **config.placement), PartialState().device or "cpu"
    control = load_hra_control(pipe, config.run)
    side = checked_resolution(run.pairs.resolution, pipe)
    trial = read_trial(folder, control.annotator, run, side, num_pairs=config.num_pairs, batch_size=config.batch_size)
    for count in trial.generate(pipe, control):
        if progress:
            progress(count, trial.num_images)
    models = inception = None
    notes: list[str] = []
    try:
        models = load_metric_models(str(base.name), device=device, local_files_only=True)
    except ModelError as error:
        notes.append(f"Prompts are not measured: {error}")
    try:
        inception = load_inception(device)
    except ModelError as error:
        notes.append(f"FID is not measured: {error}")
    if not control.annotator.reads_any_image:
        notes.append(
            f"Conditions are not compared: no annotator makes conditions of the kind {control.annotator.name!r} of "
            "generated images."
        )
    rows = trial.measure(control.annotator, models, inception)
    about = {"base": base.name, "control": str(config.run), "pairs": len(trial.prompts), "folder": str(folder)}
    return "\n".join([write_control_report(output, rows, about), *notes])


def read_trial(
    folder: Path, annotator: Annotator, run: ControlNetConfig, side: int, *, num_pairs: int, batch_size: int
) -> Trial:
    """Read the first pairs of a folder, for images with the options of the run's validation.

    Masks of objects are in the sub-folder ``masks``, labels of objects in the metadata; either may be missing.

    Args:
        folder: folder of pairs.
        annotator: the annotator of the conditions.
        run: settings of pairs and validation.
        side: side of the images in pixels.
        num_pairs: number of pairs, at most.
        batch_size: images generated at once.

    Raises:
        HRAError: the pairs are unusable.
    """
    size, background = (side, side), parse_color(run.pairs.background_color)
    pairs = read_pairs(folder, with_values(run, {"max_train_samples": num_pairs}).pairs)
    photos = [pair.example.photo for pair in pairs]
    masks = [photo.path.parent / "masks" / f"{photo.path.stem}.png" for photo in photos]
    return Trial(
        prompts=[pair.example.caption for pair in pairs],
        real=[fit(photo.decode(background), size) for photo in photos],
        conditions=[make_condition(pair, annotator, size, background) for pair in pairs],
        masks=[fit(read_image(mask), size, labels=True) for mask in masks] if all(m.is_file() for m in masks) else (),
        objects=[pair.row["object"] for pair in pairs] if all("object" in pair.row for pair in pairs) else (),
        options=run.validation.options(side),
        batch_size=batch_size,
    )
