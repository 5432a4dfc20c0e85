"""The project's data: models, subjects, example adapters and configs.

A wheel has them in the package, as package data; a checkout has them beside the package.
"""

from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from hra_diffusion.errors import ConfigError
from hra_diffusion.text import nearest

_PACKAGE = Path(str(files("hra_diffusion")))

DATA = _PACKAGE if (_PACKAGE / "assets").is_dir() else _PACKAGE.parent
"""The folder that holds assets and configs."""

_FOLDERS = [("assets",), ("configs",)]

AnyPath = TypeVar("AnyPath", bound=str | Path)


def find_data(path: AnyPath) -> AnyPath:
    """Return a path or name; below assets or configs, what exists only in the project's data gets its full path."""
    relative = Path(path)
    in_data = relative.parts[:1] in _FOLDERS and not relative.exists() and (DATA / relative).exists()
    return type(path)(DATA / relative) if in_data else path


def recorded_path(name: str) -> str:
    """Return the path of a local model or folder as files record it: absolute, except for the project's data."""
    path = Path(name)
    is_data = path.parts[:1] == ("assets",) and path.resolve() == (DATA / path).resolve()  # found from anywhere
    return name if is_data or not path.exists() else str(path.absolute())


def relative_to(path: str | Path) -> str:
    """Name the working directory in brackets for a relative path that does not exist; "" for other paths."""
    is_missing = not Path(path).is_absolute() and not Path(path).exists()
    return f" (relative to {Path.cwd()})" if is_missing else ""


def find_config(name: Path) -> Path:
    """Return a config's path: a file, or the config of configs/ with this name, whose ending may be left out.

    ``subject-sdxl`` is configs/subject-sdxl-12gb.toml. A file of the given path has priority.

    Raises:
        ConfigError: no config has the name, or several begin with it.
    """
    path = find_data(name)
    if path.is_file() or name.suffix or len(name.parts) != 1:
        return path
    configs = {config.stem: config for config in sorted((DATA / "configs").glob("*.toml"))}
    matches = [stem for stem in configs if stem == name.name] or [
        stem for stem in configs if stem.startswith(f"{name}-")
    ]
    if len(matches) == 1:
        return configs[matches[0]]
    if matches:
        raise ConfigError(f"--config {name} may be {' or '.join(matches)}: give the whole name.")
    raise ConfigError(f"--config {name} is neither a file nor a config of the package{nearest(str(name), configs)}")
