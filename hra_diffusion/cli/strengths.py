"""Strengths on the command line: one number, or NAME=NUMBER for components and their blocks."""

import math
from collections.abc import Sequence
from typing import Any

from hra_diffusion.errors import ConfigError

STRENGTH_HELP = (
    "Strength of the adapter: 0 is the base model, 1 the trained adapter. Components and blocks can have others: "
    "unet.down=0.5 unet.up.block_0=0.3 text_encoder=0.8; a list, such as 0,0.5,1, is for the attentions of a block."
)


def parse_strength(texts: Sequence[str]) -> float | dict[str, Any]:
    """Return the number, or the table of `set_hra_adapters`, of a flag --strength.

    Raises:
        ConfigError: the texts are neither one number nor NAME=NUMBER, or a name is there twice.
    """
    if len(texts) == 1 and "=" not in texts[0]:
        return _number(texts[0], texts[0])
    table: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--strength has {text!r} among others: write NAME=NUMBER, such as unet.down=0.5.")
        numbers = [_number(text, number) for number in value.split(",")]
        *outer, last = path.split(".")
        inner = table
        for name in outer:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"--strength has {path} and a part of it, {name}: give one of them.")
        if last in inner:
            raise ConfigError(f"--strength has {path} twice, or a part of it: give one of them.")
        inner[last] = numbers if len(numbers) > 1 else numbers[0]
    return table


def _number(text: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        example = "0.8, or unet.down=0.5"
        raise ConfigError(f"--strength has {text!r}, but {number!r} is not a number: write {example}.") from None
    if not math.isfinite(value):
        raise ConfigError(f"--strength is {text}: give a finite number.")
    return value
