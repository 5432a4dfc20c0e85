"""Schedulers by their common names, with the settings of the model's scheduler."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.generation.requests import MODEL_SCHEDULER

_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_DIFFUSION: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "DEIS": ("DEISMultistepScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", _KARRAS),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", _SDE),
    "DPM++ 2M SDE Karras": ("DPMSolverMultistepScheduler", _SDE | _KARRAS),
    "DPM++ SDE": ("DPMSolverSinglestepScheduler", _SDE),
    "DPM++ SDE Karras": ("DPMSolverSinglestepScheduler", _SDE | _KARRAS),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "LMS Karras": ("LMSDiscreteScheduler", _KARRAS),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
}
"""Classes of diffusers and their options, for models with a noise schedule; the names are those of A1111.

KDPM2 is left out: it converts tensors in a way that NumPy will refuse."""
_FLOW: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Euler Karras": ("FlowMatchEulerDiscreteScheduler", _KARRAS),
    "Euler exponential": ("FlowMatchEulerDiscreteScheduler", {"use_exponential_sigmas": True}),
    "Euler beta": ("FlowMatchEulerDiscreteScheduler", {"use_beta_sigmas": True}),
}
"""The same for flow matching, whose Euler steps are the default."""
_ZERO_SNR = ("DDIM", "DPMSolverMultistep", "Euler", "UniPC")
"""Starts of the classes that can rescale their noise schedule to zero terminal signal-to-noise ratio."""
_WITH_SCIPY = ("LMS", "Euler beta")
"""Starts of the names that need scipy."""


def scheduler_names(class_name: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the schedulers that suit a model, by its scheduler's class and settings.

    They are those that diffusers calls compatible and that have the model's noise schedule.
    """
    if "flow" in str(settings.get("prediction_type", "flow")) or "FlowMatch" in class_name:
        known = _FLOW if class_name == "FlowMatchEulerDiscreteScheduler" else {}
    else:
        zero_snr = settings.get("rescale_betas_zero_snr")
        known = {name: kind for name, kind in _DIFFUSION.items() if not zero_snr or kind[0].startswith(_ZERO_SNR)}
    has_scipy = find_spec("scipy") is not None
    return (MODEL_SCHEDULER, *(name for name in known if has_scipy or not name.startswith(_WITH_SCIPY)))


def scheduler_of_a1111(sampler: str, schedule: str = "") -> str | None:
    """Return the name of A1111's sampler and schedule type, which newer versions write apart; None for others."""
    names = (f"{sampler} {schedule}".strip(), sampler)
    return next((name for name in names if name in _DIFFUSION), None)


def check_scheduler(name: str, known: tuple[str, ...]) -> None:
    """Raise ConfigError for an unknown name."""
    if name not in known:
        raise ConfigError(f"There is no scheduler {name[:80]!r}; known are: {', '.join(known)}.")


def make_scheduler(name: str, default: Any) -> Any:
    """Make a scheduler with the noise schedule of the model's default scheduler."""
    if name == MODEL_SCHEDULER:
        return default
    import diffusers  # the page needs the names alone

    class_name, options = {**_FLOW, **_DIFFUSION}[name]
    return getattr(diffusers, class_name).from_config(default.config, **options)
