"""Schedulers by their common names, with the settings of the model's scheduler."""

from collections.abc import Mapping
from typing import Any

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.requests import MODEL_SCHEDULER

_CLASSES = {
    "DDIM": "DDIMScheduler",
    "DPM++ 2M": "DPMSolverMultistepScheduler",
    "Euler": "EulerDiscreteScheduler",
    "Euler a": "EulerAncestralDiscreteScheduler",
    "UniPC": "UniPCMultistepScheduler",
}


def scheduler_names(class_name: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the schedulers that suit a model, by its scheduler's class and settings."""
    if "flow" in str(settings.get("prediction_type", "flow")) or "FlowMatch" in class_name:
        return (MODEL_SCHEDULER,)
    return (MODEL_SCHEDULER, *_CLASSES)


def check_scheduler(name: str, known: tuple[str, ...]) -> None:
    """Raise ConfigError for an unknown name."""
    if name not in known:
        raise ConfigError(f"There is no scheduler {name[:80]!r}; known are: {', '.join(known)}.")


def make_scheduler(name: str, default: Any) -> Any:
    """Make a scheduler with the noise schedule of the model's default scheduler."""
    if name == MODEL_SCHEDULER:
        return default
    import diffusers  # the page needs the names alone

    return getattr(diffusers, _CLASSES[name]).from_config(default.config)
