"""Numbers and images of a run, sent to where they are looked at: accelerate's trackers, or nowhere."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import is_tensorboard_available, is_trackio_available, is_wandb_available
from PIL import Image

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config import TrainingConfig
from hra_diffusion.training.config.file import flat_values
from hra_diffusion.training.loop.steps import StepRecord

_INSTALLED = {
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
    "trackio": is_trackio_available,
}


def choose_tracker(report_to: str | None) -> str | None:
    """Return the tracker that --report_to means; when it says nothing, TensorBoard where it is installed.

    Raises:
        ConfigError: what was asked for is not installed.
    """
    if report_to == "none":
        return None
    wanted = report_to or "tensorboard"
    if _INSTALLED[wanted]():
        return wanted
    if report_to:
        raise ConfigError(
            f"--report_to is {report_to}, which is not installed: pip install {report_to}, or pass --report_to none."
        )
    return None


class Tracker:
    """One of accelerate's trackers, or none."""

    def __init__(self, tracker: Any = None) -> None:
        self._tracker = tracker

    def log(self, record: StepRecord) -> None:
        """Send the numbers of a step."""
        if self._tracker:
            values = {"loss": record.loss, "penalty": record.penalty, "gradient norm": record.gradient_norm}
            values |= {f"loss/{name}": loss for name, loss in record.losses.items()}
            values |= {f"learning rate/{name}": rate for name, rate in record.learning_rates.items()}
            self._tracker.log(values, step=record.step)

    def log_images(self, images: Mapping[str, Sequence[Image.Image]], step: int) -> None:
        """Send images by prompt, where the tracker takes some."""
        if hasattr(self._tracker, "log_images"):
            arrays = {name: np.stack(images) for name, images in images.items()}
            layout = {"dataformats": "NHWC"} if self._tracker.name == "tensorboard" else {}
            self._tracker.log_images(arrays, step=step, **layout)


@contextmanager
def tracking(name: str | None, folder: Path, config: TrainingConfig, done: int) -> Iterator[Tracker]:
    """Open the tracker of a run for a ``with`` block.

    Args:
        name: tensorboard, wandb, trackio, or None.
        folder: the run's; TensorBoard's files go to ``logs`` there.
        config: its settings.
        done: steps done; what TensorBoard has of later ones is of a run that was killed, and goes.
    """
    if not name:
        yield Tracker()
        return
    kind = LOGGER_TYPE_TO_CLASS[name]
    options = {"logging_dir": str(folder), "purge_step": done + 1} if kind.requires_logging_directory else {}
    tracker = kind("logs" if options else folder.resolve().name, **options)
    tracker.start()
    try:
        tracker.store_init_configuration(_plain(config))
        yield Tracker(tracker)
    finally:
        tracker.finish()


def _plain(config: TrainingConfig) -> dict[str, str | int | float]:
    return {k: value if isinstance(value, int | float) else str(value) for k, value in flat_values(config).items()}
