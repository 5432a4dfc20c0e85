"""Samplers by the names that people know, made from the model's own settings."""

from typing import Any

import diffusers

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.requests import OWN_SCHEDULER

_CLASSES = {
    "DDIM": "DDIMScheduler",
    "DPM++ 2M": "DPMSolverMultistepScheduler",
    "Euler": "EulerDiscreteScheduler",
    "Euler a": "EulerAncestralDiscreteScheduler",
    "UniPC": "UniPCMultistepScheduler",
}


def scheduler_names(own: Any) -> tuple[str, ...]:
    """Return the names that a model whose own scheduler is given can be asked for."""
    if "flow" in str(own.config.get("prediction_type", "flow")) or "FlowMatch" in type(own).__name__:
        return (OWN_SCHEDULER,)
    return (OWN_SCHEDULER, *_CLASSES)


def make_scheduler(name: str, own: Any) -> Any:
    """Make a scheduler that follows the same noise as the model's own.

    Raises:
        ConfigError: there is none of this name for this model.
    """
    if name == OWN_SCHEDULER:
        return own
    if name not in scheduler_names(own):
        raise ConfigError(f"There is no scheduler {name[:80]!r}; known are: {', '.join(scheduler_names(own))}.")
    return getattr(diffusers, _CLASSES[name]).from_config(own.config)
