"""``hra-diffusion evaluate-control``: measures whether a control is followed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config import ControlNetConfig
from hra_diffusion.training.config.defaults import find_model
from hra_diffusion.training.config.file import read_toml


@dataclass(frozen=True, kw_only=True)
class EvaluateControlConfig:
    """Measure a control on pairs that it was not trained on: with the right condition, with another's, with none."""

    run: tyro.conf.Positional[Path]
    """The output folder of a run of train-control."""
    pairs_dir: Path | None = None
    """Folder of pairs; held_out in the run's train_data_dir by default. masks there, by the images' names, are what
    object and background are compared to."""
    num_pairs: int = 50
    """How many pairs, the first."""
    batch_size: int = 8
    """Images drawn at once."""
    output_dir: Path | None = None
    """Folder for metrics.json and metrics.md; the run's by default."""


def main(arguments: Sequence[str]) -> None:
    """Draw, measure, write the results and print the table."""
    config = parse_settings(EvaluateControlConfig, arguments, prog="hra-diffusion evaluate-control")
    print(evaluate(config))


def evaluate(config: EvaluateControlConfig) -> str:
    """Measure; returns the table.

    Raises:
        HRAError: the run, its model or the pairs cannot be used, or the results not be written.
    """
    from accelerate import PartialState  # these import torch and more: not for --help
    from tqdm import tqdm

    from hra_diffusion.control import load_hra_control
    from hra_diffusion.errors import ModelError
    from hra_diffusion.evaluation.control_trial import trial_of
    from hra_diffusion.formats.files import check_writable
    from hra_diffusion.metrics.control_evaluation import write_report
    from hra_diffusion.metrics.frechet import load_inception
    from hra_diffusion.metrics.instruments import load_instruments
    from hra_diffusion.pipelines import load_pipeline
    from hra_diffusion.training.data.buckets import checked_resolution
    from hra_diffusion.training.data.dataset import HELD_OUT

    if not (config.run / "config.toml").is_file():
        raise ConfigError(f"{config.run} is no output folder of train-control: there is no config.toml in it.")
    run = read_toml(config.run / "config.toml", ControlNetConfig())
    output = config.output_dir or config.run
    check_writable(output)
    root = run.pairs.train_data_dir and Path(find_model(str(run.pairs.train_data_dir)))
    folder = config.pairs_dir or (root and root / HELD_OUT)
    if folder is None or not folder.is_dir():
        raise ConfigError(f"There are no pairs in {folder or 'the run'} to measure on: name a folder with --pairs_dir.")
    model = find_model(str(run.model.pretrained_model_name_or_path))
    pipe = load_pipeline(model, **run.model.loading).to(PartialState().device)
    control = load_hra_control(pipe, config.run)
    side = checked_resolution(run.pairs.resolution, pipe)
    trial = trial_of(folder, control.annotator, run, side, num_pairs=config.num_pairs, batch_size=config.batch_size)
    with tqdm(desc="measuring", total=trial.total, unit="image") as bar:
        for done in trial.draw(pipe, control):
            bar.update(done - bar.n)
    instruments = inception = None
    notes: list[str] = []
    try:
        instruments = load_instruments(model, device=pipe.device, local_files_only=True)
    except ModelError as error:
        notes.append(f"Prompts are not measured: {error}")
    try:
        inception = load_inception(pipe.device)
    except ModelError as error:
        notes.append(f"FID is not measured: {error}")
    measured = trial.measure(control.annotator, instruments, inception)
    about = {"base": model, "control": str(config.run), "pairs": len(trial.prompts), "folder": str(folder)}
    return "\n".join([write_report(output, measured, about), *notes])
