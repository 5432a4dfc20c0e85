"""The mean rotation of a training job in words, with a verdict for the jobs for which one was measured."""

from collections.abc import Sequence
from pathlib import Path

from hra_diffusion.errors import HRAError
from hra_diffusion.resources import find_data
from hra_diffusion.studio.engine.training.job import Job
from hra_diffusion.studio.engine.training.training_job import read_settings
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.defaults import EMBEDDED_BASE
from hra_diffusion.training.loop.steps import StepRecord

_BEST = (20, 25)
"""Angles of the UNet, in degrees, at which subjects were learned best: docs/benchmarks.md, "When to stop"."""
_RANK, _RATES = 8, (0.05, 0.15)
"""Rank and learning rates of these measurements, on the embedded base without class images."""


def rotation_summary(job: Job, records: Sequence[StepRecord]) -> str:
    """Return a sentence about the last mean rotation angle of the denoiser; "" before there is one."""
    angles = next((record.component_angles for record in reversed(records) if record.component_angles), {})
    angle = angles.get("unet", angles.get("transformer"))
    if angle is None:
        return ""
    text, best = f"Mean rotation {angle:.0f}°", f"{_BEST[0]}° to {_BEST[1]}°"
    if not _was_measured(job):
        return f"{text} (0° is the base model). Which angle is best was not measured for jobs like this one."
    if angle < _BEST[0]:
        return f"{text}: small. Subjects of jobs like this one were learned best at {best}."
    if angle <= _BEST[1]:
        return f"{text}: as in jobs like this one when their subjects were learned best, at {best}."
    return f"{text}: large. Subjects of jobs like this one were learned best at {best}, and not better beyond."


def _was_measured(job: Job) -> bool:
    """Whether the best angles were measured for a job's base and settings."""
    try:
        config = read_settings(job.folder)
    except HRAError:
        return False
    return (
        isinstance(config, DreamBoothConfig)
        and Path(find_data(config.model.pretrained_model_name_or_path or "")).resolve() == EMBEDDED_BASE
        and not config.prior.with_prior_preservation
        and config.adapter.rank == _RANK
        and _RATES[0] <= config.optimizer.learning_rate <= _RATES[1]
    )
