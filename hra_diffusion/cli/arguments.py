"""Command-line arguments → dataclasses with tyro: flat flags, written --a_b or --a-b, unknown ones refused by name."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import tyro

from hra_diffusion.errors import ConfigError
from hra_diffusion.text import nearest
from hra_diffusion.training.config.bounds import check_value
from hra_diffusion.training.config.file import flag_types

Result = TypeVar("Result")

__all__ = ["flag_value", "parse", "parse_settings"]


def parse(build: Callable[..., Result], arguments: Sequence[str], *, prog: str, flags: Sequence[str]) -> Result:
    """Call ``build`` with what the arguments say; its parameters, flattened, are the flags.

    Raises:
        ConfigError: an argument is unknown; the nearest of ``flags`` is suggested.
        SystemExit: help was asked for (0), or a value cannot be read or a required one is missing (2).
    """
    result, unknown = tyro.cli(
        build,
        prog=prog,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
        use_underscores=True,
        return_unknown_args=True,
    )
    for argument in unknown:
        raise ConfigError(_refusal(argument, flags))
    return result


def parse_settings(kind: type[Result], arguments: Sequence[str], *, prog: str) -> Result:
    """Make a dataclass of the arguments: its fields are the flags, its docstring is the help.

    Raises:
        ConfigError, SystemExit: as in :func:`parse`; or a number is out of its range.
    """
    settings = parse(kind, arguments, prog=prog, flags=list(flag_types(kind)))
    for name, value in vars(settings).items():
        if isinstance(value, int | float):
            check_value(name, value)
    return settings


def flag_value(arguments: Sequence[str], name: str) -> str | None:
    """Find the last value given for a flag, before the arguments are parsed as a whole."""
    value = None
    for index, argument in enumerate(arguments):
        flag, equals, attached = argument.partition("=")
        if flag.replace("-", "_") == f"__{name}":
            value = attached if equals else next(iter(arguments[index + 1 :]), None)
    return value


def _refusal(argument: str, flags: Sequence[str]) -> str:
    if not argument.startswith("--"):
        return f"Unexpected argument {argument!r}: values follow their flag; switches take none (--name, --no_name)."
    name = argument.partition("=")[0]
    return f"Unknown flag {name}{nearest(name.replace('-', '_').strip('_'), flags)}"
