"""Settings of a run under their names on the command line, typed as texts; an empty text leaves the default."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.setting_error import SettingError
from hra_diffusion.training.config.bounds import check_value

MAX_PROMPTS = 8
_MAX_CHARACTERS = 1000
_LARGEST = {"learning_rate": 10, "resolution": 4096, "train_batch_size": 256, "checkpointing_steps": 20_000}
"""Largest values: a typing error would exhaust the memory of a machine that others use, too."""


def parse_whole(name: str, value: Any) -> int | None:
    """Return a whole number, or None for an empty text; raises SettingError."""
    return _number(name, value, int, "a whole number")


def _parse_float(name: str, value: Any) -> float | None:
    return _number(name, value, float, "a number")


def _number(name: str, value: Any, kind: Callable[[str], Any], described: str) -> Any:
    if value is None or not str(value).strip():
        return None
    try:
        return kind(str(value).strip().removesuffix(".0"))
    except ValueError:
        raise SettingError(name, f"must be {described}; found {str(value)[:40]!r}.") from None


def _parse_modules(name: str, value: Any) -> tuple[str, ...] | None:
    modules = tuple(str(value or "").replace(",", " ").split())
    for module in modules:
        if not re.fullmatch(r"[\w.-]{1,200}", module):
            raise SettingError(name, f"has {module[:40]!r}: give ends of layer names, such as to_q to_k to_v to_out.0.")
    return modules or None


def _parse_prompts(name: str, value: Any) -> tuple[str, ...] | None:
    prompts = tuple(line.strip() for line in str(value or "").splitlines() if line.strip())
    if len(prompts) > MAX_PROMPTS:
        raise SettingError(name, f"are {len(prompts)}: give at most {MAX_PROMPTS}, one on each line.")
    for prompt in prompts:
        if len(prompt) > _MAX_CHARACTERS:
            raise SettingError(name, f"have a line of {len(prompt)} characters: give at most {_MAX_CHARACTERS}.")
        unknown = set(re.findall(r"{(.*?)}", prompt)) - {"instance_prompt", "class_prompt"}
        if unknown:
            raise SettingError(name, f"have {{{min(unknown)[:40]}}}: use {{instance_prompt}} or {{class_prompt}}.")
    return prompts or None


RUN_OPTIONS: Mapping[str, Callable[[str, Any], Any]] = {
    "validation_prompts": _parse_prompts,
    "learning_rate": _parse_float,
    "resolution": parse_whole,
    "train_batch_size": parse_whole,
    "seed": parse_whole,
    "target_modules": _parse_modules,
    "checkpointing_steps": parse_whole,
}
"""The settings, each with the function that parses its text."""


def parse_run_options(texts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given settings of a run by name; empty ones are left out.

    Raises:
        SettingError: a text cannot be read, or its value is out of range.
    """
    values = {name: parse(name, texts.get(name)) for name, parse in RUN_OPTIONS.items()}
    return check_run_options({name: value for name, value in values.items() if value is not None})


def check_run_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a run if each is known and in its range; raise SettingError otherwise."""
    for name, value in values.items():
        if name not in RUN_OPTIONS:
            raise ConfigError(
                f"There is no setting {name[:80]!r} of a training job; known are: {', '.join(RUN_OPTIONS)}."
            )
        try:
            check_value(name, value)
        except ConfigError as error:
            raise SettingError(name, str(error).removeprefix(f"--{name} ")) from None
        if name in _LARGEST and value > _LARGEST[name]:
            raise SettingError(name, f"is {value}: give a number at most {_LARGEST[name]}.")
    return dict(values)


def option_text(name: str, value: Any) -> str:
    """Return the text that is parsed as a setting's value: prompts by lines, modules by words, "" for None."""
    if isinstance(value, tuple):
        return ("\n" if name == "validation_prompts" else " ").join(map(str, value))
    return "" if value is None else str(value)
