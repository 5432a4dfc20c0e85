"""Experiment tracking: a run's measurements and images in TensorBoard, Weights & Biases or Trackio."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import is_tensorboard_available, is_trackio_available, is_wandb_available
from PIL import Image

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config import RunConfig, TrainingConfig
from hra_diffusion.training.config.file import flat_values
from hra_diffusion.training.loop.steps import StepRecord

_INSTALLED = {
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
    "trackio": is_trackio_available,
}


def choose_tracker(report_to: str | None) -> str | None:
    """Return the tracker of --report_to; by default TensorBoard if it is installed, else None.

    Raises:
        ConfigError: the tracker is not installed.
    """
    if report_to == "none":
        return None
    name = report_to or "tensorboard"
    if _INSTALLED[name]():
        return name
    if report_to:
        raise ConfigError(
            f"--report_to is {report_to}, which is not installed: pip install {report_to}, or pass --report_to none."
        )
    return None


def logging_folder(output_dir: Path, run: RunConfig) -> Path:
    """Return TensorBoard's folder."""
    return output_dir / (run.logging_dir or "logs")


class Tracker:
    """A tracker of accelerate, or none."""

    def __init__(self, tracker: Any = None) -> None:
        self._tracker = tracker

    def log(self, record: StepRecord) -> None:
        """Log the measurements of a step."""
        if self._tracker:
            values = {"loss": record.loss, "penalty": record.penalty, "gradient norm": record.gradient_norm}
            values |= {f"loss/{name}": loss for name, loss in record.losses.items()}
            values |= {f"learning rate/{name}": rate for name, rate in record.learning_rates.items()}
            values |= {f"rotation angle/{name}": angle for name, angle in record.angles.items()}
            values |= {} if record.validation_loss is None else {"loss/validation": record.validation_loss}
            self._tracker.log(values, step=record.step)

    def log_images(self, images: Mapping[str, Sequence[Image.Image]], step: int) -> None:
        """Log images by prompt, if the tracker supports images."""
        if hasattr(self._tracker, "log_images"):
            arrays = {prompt: np.stack([np.asarray(image) for image in group]) for prompt, group in images.items()}
            options = {"dataformats": "NHWC"} if self._tracker.name == "tensorboard" else {}
            self._tracker.log_images(arrays, step=step, **options)


@contextmanager
def open_tracker(name: str | None, folder: Path, config: TrainingConfig, initial_global_step: int) -> Iterator[Tracker]:
    """Open the tracker of a run for a ``with`` block.

    Args:
        name: tensorboard, wandb, trackio, or None.
        folder: the run's folder; TensorBoard writes to its subfolder ``logs``, or to ``--logging_dir``.
        config: the run's settings.
        initial_global_step: steps done already; TensorBoard purges later steps, which a killed run has logged.
    """
    if not name:
        yield Tracker()
        return
    kind = LOGGER_TYPE_TO_CLASS[name]
    if kind.requires_logging_directory:
        logs = logging_folder(folder, config.run)
        tracker = kind(logs.name, logging_dir=str(logs.parent), purge_step=initial_global_step + 1)
    else:
        tracker = kind(folder.resolve().name)
    tracker.start()
    try:
        tracker.store_init_configuration(_init_configuration(config))
        yield Tracker(tracker)
    finally:
        tracker.finish()


def _init_configuration(config: TrainingConfig) -> dict[str, str | int | float]:
    """Return the settings as values that every tracker accepts."""
    return {k: value if isinstance(value, int | float) else str(value) for k, value in flat_values(config).items()}
