"""Environment variables of accelerate that change a run, so that no run depends on one without a word.

``accelerate launch`` sets them from its own flags and its config file; a shell's profile or a cluster may, too.
"""

import os

from hra_diffusion.training.config import RunConfig

_PREFIXES = (
    "ACCELERATE_USE_",
    "ACCELERATE_TORCH_DEVICE",
    "ACCELERATE_DEEPSPEED_",
    "ACCELERATE_DOWNCAST_BF16",
    "ACCELERATE_FP8_",
    "ACCELERATE_GRADIENT_CLIPPING",
    "ACCELERATE_CONFIG_DS_FIELDS",
    "ACCELERATE_BYPASS_DEVICE_MAP",
    "PARALLELISM_CONFIG_",
)
_DYNAMO = "ACCELERATE_DYNAMO_"
_FSDP = "FSDP_"
_OFF = ("", "0", "no", "off", "false", "none", "default")
"""Values that change nothing, in small letters; ``accelerate launch`` sets some variables to them."""


def describe_variables(run: RunConfig) -> str:
    """Describe the variables that change a run, or would without its settings, in one line; "" if there are none."""
    variables = {name: value for name, value in sorted(os.environ.items()) if value.lower() not in _OFF}
    active = [f"{name}={value}" for name, value in variables.items() if _is_active(name, variables)]
    overridden = [
        f"{variable}={variables[variable]} has no effect: --{setting} is {getattr(run, setting)}"
        for setting in ("mixed_precision", "gradient_accumulation_steps")
        if (variable := f"ACCELERATE_{setting.upper()}") in variables
        and variables[variable] != str(getattr(run, setting))
    ]
    sentences = [f"{', '.join(active)} in the environment change{'s' * (len(active) == 1)} this run"] if active else []
    return "; ".join(sentences + overridden)


def _is_active(name: str, variables: dict[str, str]) -> bool:
    """Whether a variable has an effect: those of dynamo and FSDP have none while these are off."""
    if name.startswith(_DYNAMO):
        return f"{_DYNAMO}BACKEND" in variables
    if name.startswith(_FSDP):
        return "ACCELERATE_USE_FSDP" in variables
    return name.startswith(_PREFIXES)
