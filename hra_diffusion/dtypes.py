"""The floating-point dtypes of models and adapter files, by name."""

from typing import Final

import torch

from hra_diffusion.errors import ConfigError
from hra_diffusion.text import nearest

DTYPES: Final = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}
_NAMES: Final = {**DTYPES, **{str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}}


def to_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """Return a dtype, given itself or its name: "fp16", "float16" or "torch.float16".

    Raises:
        ConfigError: it is none of float16, bfloat16, float32 and float64.
    """
    name = str(dtype)[:40].removeprefix("torch.")
    if name not in _NAMES:
        raise ConfigError(f"dtype {name!r} is not supported{nearest(name, _NAMES)}")
    return _NAMES[name]
