"""Following a run on the screen: what it is about, a progress bar, a signal that becomes a checkpoint."""

import logging
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from hra_diffusion.cli.arguments import flag_value
from hra_diffusion.cli.stopping import Stopped, StopWish, stop_wish
from hra_diffusion.training.config import TrainingConfig
from hra_diffusion.training.config.defaults import embedded_defaults
from hra_diffusion.training.config.dependencies import without_effect
from hra_diffusion.training.config.file import flag_types, flat_values, overridden_by, read_toml, with_values

if TYPE_CHECKING:
    from PIL.Image import Image

    from hra_diffusion.training.loop.steps import StepRecord
    from hra_diffusion.training.outputs.trackers import Tracker
    from hra_diffusion.training.run import Run

Config = TypeVar("Config", bound=TrainingConfig)
logger = logging.getLogger(__name__)

CONFIG_HELP = "A TOML file with any of these settings, such as the config.toml of an earlier run; flags win over it."


def defaults(arguments: Sequence[str], kind: type[Config], embedded: str) -> Config:
    """Return the settings that flags are to win over: those of --config over the defaults.

    Where no model is named, the embedded base is used, and the defaults are those of a file of configs/ that fits it.

    Raises:
        ConfigError: the file of --config cannot be read.
    """
    path = flag_value(arguments, "config")
    told = read_toml(Path(path), kind()) if path else kind()
    named = flag_value(arguments, "pretrained_model_name_or_path") or told.model.pretrained_model_name_or_path
    default = kind() if named else embedded_defaults(kind, embedded)
    config = read_toml(Path(path), default) if path else default
    return with_values(config, overridden_by(_flags_of(kind, arguments)))


def warn_of_unused_flags(config: TrainingConfig, arguments: Sequence[str]) -> None:
    """Say which of the flags on the command line mean nothing without another."""
    for sentence in without_effect(flat_values(config), _flags_of(type(config), arguments)):
        logger.warning(sentence)


def _flags_of(kind: type[TrainingConfig], arguments: Sequence[str]) -> list[str]:
    return [name for name in flag_types(kind) if flag_value(arguments, name) not in (None, "None")]


def announce(run: "Run") -> None:
    """Say what will be trained, or with --dry_run all that can be said beforehand."""
    if run.config.run.dry_run:
        from hra_diffusion.training.dry_run import describe

        told = describe(run)
        if run.is_main:
            print(told)
    elif run.is_main:
        print(run.summary, file=sys.stderr)
        if run.resumes_from:
            print(f"Going on from {run.resumes_from}", file=sys.stderr)


def follow(run: "Run") -> None:
    """Take all steps, with a progress bar; a signal makes the last of them a checkpoint.

    Raises:
        Stopped: a signal came.
    """
    from hra_diffusion.training.outputs.trackers import tracking  # imports accelerate: not for --help

    start = run.recording.trainer.done  # encodes the images: until then a signal may stop everything
    with (
        tracking(run.tracker if run.is_main else None, run.folder, run.config, start) as tracker,
        stop_wish(patient=run.accelerator.num_processes > 1) as wish,
        tqdm(desc="training", total=run.total_steps, initial=start, unit="step", disable=not run.is_main) as bar,
    ):
        for record in run.steps():
            rate = (bar.format_dict["rate"] or 0) * run.images_per_step
            bar.set_postfix(_numbers(record, rate), refresh=False)
            bar.update()
            tracker.log(record)
            if record.step % (run.config.validation.validation_steps or sys.maxsize) == 0:
                _look(run, tracker, record.step, wish)
            if run.any_process(wish.number is not None):
                checkpoint = run.save_checkpoint()
                stopped = Stopped(
                    f"Stopped after step {record.step}, which {checkpoint} holds: go on from there with "
                    "--resume_from_checkpoint latest.",
                    wish.number or signal.SIGTERM,
                )
                _end_training(run, stopped.exit_code)
                raise stopped


def finish(run: "Run") -> None:
    """Save what was learned, and draw before_after.png; of several processes, the main one alone comes back."""
    run.save()
    _end_training(run)
    show_progress(run.draw_before_after(), "before and after", run.portrait.total)


def _end_training(run: "Run", exit_code: int = 0) -> None:
    """End all processes but the main one.

    They leave without Python's clearing up: a thread of gloo that lets go of a tensor at that time aborts its process,
    as one in eight did on a machine with much else to do, and shuts down the whole launch with it.
    """
    run.end_training()
    if not run.is_main:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _numbers(record: "StepRecord", images_per_second: float) -> dict[str, str]:
    rates = dict.fromkeys(f"{rate:.3g}" for rate in record.learning_rates.values())
    return {"loss": f"{record.loss:.4f}", "lr": "/".join(rates), "images/s": f"{images_per_second:.1f}"}


def _look(run: "Run", tracker: "Tracker", step: int, wish: StopWish) -> None:
    """Draw the validation images, and send them to the tracker; a signal ends the drawing."""
    images: dict[str, list[Image]] = {}
    for prompt, _, image in run.draw_validation():
        images.setdefault(prompt, []).append(image)
        if wish.number is not None:
            return
    tracker.log_images(images, step)


def show_progress(progress: Iterable[int], what: str, total: int) -> None:
    """Show a bar for something that yields how much of it is done; none when there is nothing to do."""
    bar: Any = None
    for done in progress:
        bar = bar or tqdm(desc=what, total=total, unit="image")
        bar.update(done - bar.n)
    if bar:
        bar.close()
