"""Command-line arguments → settings with tyro. Flags are flat, written --a_b or --a-b; unknown ones are refused."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, TypeVar, get_args, get_origin, get_type_hints

import tyro

from hra_diffusion.cli.other_trainers import counterpart
from hra_diffusion.errors import ConfigError
from hra_diffusion.resources import find_data
from hra_diffusion.text import is_utf8, nearest
from hra_diffusion.training.config.bounds import check_value
from hra_diffusion.training.config.file import flag_types

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Settings = TypeVar("Settings", bound="DataclassInstance")

CONFIG_HELP = (
    "A TOML file with any of these settings, such as the config.toml of an earlier run, or the name of a config of the "
    "package, such as subject-sdxl; flags override it."
)


def parse_settings(kind: type[Settings], arguments: Sequence[str], *, prog: str) -> Settings:
    """Make a dataclass of the arguments: its fields are the flags, its docstring is the help.

    Raises:
        ConfigError: an argument is unknown (its counterpart or the nearest flag is named), or a number is out of range.
        SystemExit: help was asked for (0), or a value cannot be read or a required one is missing (2).
    """
    settings = _parse(kind, arguments, prog, flag_types(kind))
    for name, value in vars(settings).items():
        if isinstance(value, int | float):
            check_value(name, value)
    if adapter := getattr(settings, "adapter", None):  # the project's examples are known in every folder
        settings = replace(settings, adapter=find_data(adapter))
    return settings


def parse_flags(
    kind: "type[DataclassInstance]", arguments: Sequence[str], *, prog: str, description: str, usual: Sequence[str]
) -> dict[str, Any]:
    """Parse the flags of a training config, and ``--config``; returns the given ones alone, by name.

    Args:
        kind: the config, made of groups: their docstrings and those of their fields are the help.
        arguments: the command line.
        prog: the command's name, for the help.
        description: what the command does, for the help.
        usual: flags to list first in the help, before the groups.

    Raises:
        ConfigError, SystemExit: as in :func:`parse_settings`.
    """
    default = kind()
    config_flag = tyro.conf.arg(help=CONFIG_HELP, help_behavior_hint="", metavar="PATH")
    types: dict[str, Any] = {"config": Annotated[Path | None, config_flag]}
    sections: dict[str, list[str]] = {"usual": ["config", *usual]}
    titles: dict[str, str | None] = {}
    for group in fields(default):
        settings = getattr(default, group.name)
        hints, texts = get_type_hints(type(settings)), _field_docstrings(type(settings))
        for name, value in vars(settings).items():
            flag = tyro.conf.arg(
                help=texts[name], help_behavior_hint=_default_hint(value), metavar=_metavar(hints[name])
            )
            types[name] = (
                Annotated[hints[name], flag, _TABLE] if _is_table(hints[name]) else Annotated[hints[name], flag]
            )
        sections[group.name] = [name for name in vars(settings) if name not in usual]
        titles[group.name] = inspect.getdoc(type(settings))
    flags = _typed_dict(
        description,
        {
            section: _typed_dict(titles.get(section), {name: types[name] for name in names}, total=False)
            for section, names in sections.items()
        },
    )
    given = _parse(flags, arguments, prog, types)
    return {name: value for section in given.values() for name, value in section.items()}


def _parse(kind: Any, arguments: Sequence[str], prog: str, known: Any) -> Any:
    _refuse_other_encodings(arguments)
    result, unknown = tyro.cli(
        kind,
        prog=prog,
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
        use_underscores=True,
        return_unknown_args=True,
    )
    _refuse_unknown(unknown, known)
    return result


def _refuse_unknown(arguments: Sequence[str], known: Iterable[str]) -> None:
    """Raise ConfigError for unknown arguments, naming all unknown flags and not their values."""
    flags = list(dict.fromkeys(argument.partition("=")[0] for argument in arguments if argument.startswith("--")))
    if arguments and not arguments[0].startswith("--"):
        raise ConfigError(
            f"Unexpected argument {arguments[0]!r}: values follow their flag; switches take none (--name, --no_name)."
        )
    if flags:
        advice = "; ".join(f"{flag}: {_advice(flag[2:].replace('-', '_').strip('_'), known)}" for flag in flags)
        raise ConfigError(f"Unknown flag{'s' if len(flags) > 1 else ''} {advice}")


def _advice(name: str, known: Iterable[str]) -> str:
    """Return the advice about an unknown flag: its counterpart, or the nearest known name."""
    if row := counterpart(name, known):
        return row.advice
    suggestion = nearest(name, known).removeprefix(": ")
    return suggestion if suggestion.startswith("did you mean") else "no flag is near; --help lists all"


def _refuse_other_encodings(arguments: Sequence[str]) -> None:
    """Raise ConfigError for an argument that is not valid UTF-8: no file or image could record its value."""
    flag = "An argument"
    for argument in arguments:
        value = argument
        if argument.startswith("--"):
            flag, _, value = argument.partition("=")
        if not is_utf8(flag + value):
            name = ascii(flag)[1:-1]
            raise ConfigError(f"{name} is {value!r}, which is not UTF-8: retype it, or rename the file or folder.")


def _typed_dict(docstring: str | None, keys: dict[str, Any], *, total: bool = True) -> Any:
    """Make a TypedDict; tyro omits keys without a flag if ``total`` is False."""
    made: Any = TypedDict("options", keys, total=total)  # pyright: ignore[reportGeneralTypeIssues, reportArgumentType]
    made.__doc__ = docstring
    return made


def _field_docstrings(kind: type) -> dict[str, str]:
    """Return the docstrings below the fields of a dataclass and its bases, by field."""
    docstrings: dict[str, str] = {}
    for base in kind.__mro__[:-1]:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                name, text = ast.unparse(field.target), ast.literal_eval(below.value)
                docstrings.setdefault(name, " ".join(text.split()))
    return docstrings


def _default_hint(value: Any) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, tuple):
        value = " ".join(map(str, value))
    return f"(default: {value})" if not isinstance(value, bool) else f"(default: {'yes' if value else 'no'})"


def _is_table(kind: Any) -> bool:
    return any(get_origin(other) is dict for other in get_args(kind))


def _read_table(texts: list[str]) -> dict[str, int]:
    """Read a JSON object of whole numbers; tyro reports a ValueError."""
    table: Any = json.loads(texts[0])
    if not isinstance(table, dict) or not all(type(item) is int for item in table.values()):
        raise ValueError(f'write whole numbers by name, such as {{"to_q": 4}}; found {texts[0]}')
    return table


_TABLE = tyro.constructors.PrimitiveConstructorSpec[Any](
    nargs=1,
    metavar="JSON",
    instance_from_str=_read_table,
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda table: [json.dumps(table)],
)


def _metavar(kind: Any) -> str | None:
    """Return the name of an optional value's type, without None; None where tyro's own word is right."""
    kinds = [other for other in get_args(kind) if other is not NoneType]
    return kinds[0].__name__.upper() if NoneType in get_args(kind) and isinstance(kinds[0], type) else None
