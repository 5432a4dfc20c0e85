"""Samplers by the names that people know, made from the model's own settings."""

from collections.abc import Mapping
from typing import Any

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.requests import OWN_SCHEDULER

_CLASSES = {
    "DDIM": "DDIMScheduler",
    "DPM++ 2M": "DPMSolverMultistepScheduler",
    "Euler": "EulerDiscreteScheduler",
    "Euler a": "EulerAncestralDiscreteScheduler",
    "UniPC": "UniPCMultistepScheduler",
}


def scheduler_names(own: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names that a model can be asked for, whose own scheduler has this class and these settings."""
    if "flow" in str(settings.get("prediction_type", "flow")) or "FlowMatch" in own:
        return (OWN_SCHEDULER,)
    return (OWN_SCHEDULER, *_CLASSES)


def check_scheduler(name: str, known: tuple[str, ...]) -> None:
    """Raise ConfigError for a name that is not among the known ones."""
    if name not in known:
        raise ConfigError(f"There is no scheduler {name[:80]!r}; known are: {', '.join(known)}.")


def make_scheduler(name: str, own: Any) -> Any:
    """Make a scheduler, of a name that the model can be asked for, that follows the same noise as the model's own."""
    if name == OWN_SCHEDULER:
        return own
    import diffusers  # the page, which shows the names, does without

    return getattr(diffusers, _CLASSES[name]).from_config(own.config)
