"""A frozen model in fewer bits: each weight of its linear layers is a whole number times its row's scale.

    W ≈ diag(s) Q,   Q of int8

An adapted layer only calls its base, so the reflections in front of it train as before; they are not quantised.
"""

import importlib
from typing import Any

from torch import nn

from hra_diffusion.errors import ConfigError


def quantise(model: nn.Module) -> None:
    """Quantise the weights of a model's linear layers to int8, in place, with torchao.

    Raises:
        ConfigError: torchao is not installed.
    """
    try:
        torchao: Any = importlib.import_module("torchao.quantization")
    except ImportError as error:
        raise ConfigError(
            f"--quantization needs the package torchao ({error}): install it with pip install 'hra-diffusion[int8]', "
            "or leave the flag out."
        ) from error
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
