"""Settings as TOML: a table a group, a key a field, so that the config.toml of a run reproduces it.

Keys may be in their tables or outside of any. The name and type of each key are checked, and an unknown key is refused
with the nearest match. Missing keys keep the default.
"""

import types
from collections.abc import Collection, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.reading import check_regular, parse_toml
from hra_diffusion.formats.run_folder import run_file
from hra_diffusion.text import is_utf8, nearest
from hra_diffusion.training.config import ControlNetConfig, DreamBoothConfig

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")


def flag_types(config: "type[DataclassInstance] | DataclassInstance") -> dict[str, Any]:
    """Return the type of every field by name, groups flattened: ``{"rank": int, …}``."""
    hints = get_type_hints(config if isinstance(config, type) else type(config))
    return {
        name: kind
        for field_name, hint in hints.items()
        for name, kind in (flag_types(hint) if is_dataclass(hint) else {field_name: hint}).items()
    }


def flat_values(config: "DataclassInstance") -> dict[str, Any]:
    """Return the value of every field by name, groups flattened."""
    return {name: value for group in vars(config).values() for name, value in vars(group).items()}


def with_values(config: Config, values: dict[str, Any]) -> Config:
    """Return the config with some fields changed, each given by its flat name."""
    changes: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value) and not isinstance(value, type):
            changes[field.name] = with_values(value, values)
        elif field.name in values:
            changes[field.name] = values[field.name]
    return replace(config, **changes)


_OVERRIDES = {
    "num_train_epochs": "max_train_steps",
    "dataset_name": "train_data_dir",
    "train_data_dir": "dataset_name",
}
"""Settings, each with the setting that it replaces."""

_EARLIER_GROUPS = {"optimiser": "optimizer", "preview": "validation"}
"""Names of tables in files of version 0.1."""

_EARLIER_VALUES = {("prior_target", "picture"): "image"}
"""Words of version 0.1 in config files and checkpoints, by setting."""


def current_words(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by name with the words of version 0.1 replaced."""
    return {name: _EARLIER_VALUES.get((name, str(value)), value) for name, value in settings.items()}


def changed_settings(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ in two fingerprints, with both values; a later setting had its default before."""
    usual, now = flat_values(DreamBoothConfig()), current_words(now)
    before = {name: usual[name] for name in now.keys() & usual.keys()} | current_words(saved)
    return {name: (before[name], now[name]) for name in sorted(before.keys() & now.keys()) if before[name] != now[name]}


def overridden_by(names: Collection[str]) -> dict[str, None]:
    """Return the settings that the given names override and do not contain, mapped to None."""
    return {other: None for name, other in _OVERRIDES.items() if name in names and other not in names}


def read_toml(path: Path, default: Config) -> Config:
    """Read a TOML file over ``default``.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value has the wrong type or range.
    """
    try:
        table = parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The config {path} cannot be read ({error.strerror}): check its path.") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigError(f"The config {path} is not valid TOML ({error}): correct it there.") from error
    groups = {field.name for field in fields(default)}
    table = {_EARLIER_GROUPS.get(key, key): value for key, value in table.items()}
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= value if key in groups and isinstance(value, dict) else {key: value}
    known = flag_types(default)
    for key in sorted(flat.keys() - known.keys()):
        if key in groups:
            raise ConfigError(
                f"The config {path} has {key} = {flat[key]!r}, but [{key}] is a table: write its keys below [{key}]."
            )
        if any(key in get_type_hints(kind) or key in flag_types(kind) for kind in (DreamBoothConfig, ControlNetConfig)):
            raise ConfigError(
                f"The config {path} has {key}, which is of another kind of run: use its command, or remove the key."
            )
        raise ConfigError(f"The config {path} has an unknown key {key!r}{nearest(key, known.keys() | groups)}")
    values = {
        key: _convert(f"The config {path} has", key, value, known[key]) for key, value in current_words(flat).items()
    }
    return with_values(default, overridden_by(values) | values)


def read_run(folder: Path, default: Config) -> Config:
    """Read the settings of the run that trained an adapter.

    Args:
        folder: the adapter's folder, or the run's; config.toml is in it or one level above.
        default: the values of missing keys; its class is the kind of run.

    Returns:
        The settings; ``default`` if there is no config.toml.

    Raises:
        ConfigError: the config.toml is damaged, or of the other kind of run.
    """
    path = run_file(folder, "config.toml")
    if path is None:
        return default
    check_regular(path)
    is_control = "[control]" in path.read_text(encoding="utf-8").splitlines()
    if is_control != isinstance(default, ControlNetConfig) and path.parent != Path(folder):
        return default  # the adapter is of another run than the folder that holds it
    if isinstance(default, ControlNetConfig) and not is_control:
        raise ConfigError(f"{folder} holds an adapter and no control: name it with --adapter instead of --control.")
    if isinstance(default, DreamBoothConfig) and is_control:
        raise ConfigError(
            f"{folder} holds a control: generate with --control and --image, and evaluate with hra-diffusion "
            "evaluate-control."
        )
    return read_toml(path, default)


def convert_setting(kind: "type[DataclassInstance]", name: str, value: Any) -> Any:
    """Convert a setting to its field's type: texts become paths, lists become tuples, whole numbers floats.

    Raises:
        ConfigError: the name is unknown (the nearest is suggested), or the value has another type.
    """
    known = flag_types(kind)
    if name not in known:
        raise ConfigError(f"Unknown setting {name!r}{nearest(name, known)}")
    return _convert("The setting", name, _as_toml(value), known[name])


def to_toml(config: "DataclassInstance") -> str:
    """Return the config as TOML text, a table a group; fields with None are left out.

    Raises:
        ConfigError: a value, such as a path, is not valid UTF-8.
    """
    tables = {
        group.name: {
            name: _as_toml(value) for name, value in vars(getattr(config, group.name)).items() if value is not None
        }
        for group in fields(config)
    }
    for table in tables.values():
        for name, value in table.items():
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            if not is_utf8(text):
                raise ConfigError(f"--{name} is {text!r}, which is not UTF-8 and cannot be recorded: rename it.")
    return tomli_w.dumps(tables)


def _as_toml(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_as_toml(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _convert(origin: str, key: str, value: Any, kind: Any) -> Any:
    """Convert a TOML value to the field's type, or raise ConfigError naming its origin."""
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for expected in kinds:
        if get_origin(expected) is Literal and value in get_args(expected):
            return value
        if get_origin(expected) is tuple and isinstance(value, list):
            item_kind = get_args(expected)[0]
            if all(type(item) is (int if item_kind is int else str) for item in value):
                return tuple(map(item_kind, value))
        if (
            get_origin(expected) is dict
            and isinstance(value, dict)
            and all(type(item) is int for item in value.values())
        ):
            return dict(value)
        if expected is Path and isinstance(value, str):
            return Path(value)
        if expected is float and type(value) is int:
            return float(value)
        if type(value) is expected:  # not isinstance: True is no number here
            return value
    words = " or ".join(_describe_type(expected) for expected in kinds if expected is not type(None))
    raise ConfigError(f"{origin} {key} = {value!r}: write {words}.")


def _describe_type(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of whole numbers" if get_args(kind)[0] is int else "a list of texts"
    if get_origin(kind) is dict:
        return "a table of whole numbers"
    return {str: "a text", Path: "a path as text", int: "a whole number", float: "a number", bool: "true or false"}[
        kind
    ]
