"""An adapter of the library: its facts, read from its folder."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hra_diffusion.errors import AdapterFileError, ConfigError, HRAError
from hra_diffusion.formats.files import UNPORTABLE, is_portable
from hra_diffusion.formats.folders import (
    ENCODER_FILES,
    base_model,
    component_folders,
    find_encoder,
    public_name,
    run_settings,
)
from hra_diffusion.formats.peft import CONFIG_FILE
from hra_diffusion.formats.reading import read_json
from hra_diffusion.formats.run_folder import BASE_FILE, METRICS, SHEET, TABLE
from hra_diffusion.studio.engine.adapters.subject_prompts import split_prompts
from hra_diffusion.text import is_utf8

_NAME = re.compile(r"\w[\w .+-]{0,62}\w|\w")
THUMBNAILS = ("thumbnail.png", SHEET)
EXTRA_FILES = ("config.toml", BASE_FILE, TABLE, METRICS, *THUMBNAILS)
"""Files beside the adapter, from a run or an archive."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An adapter in the library."""

    name: str
    folder: Path
    components: tuple[str, ...]
    rank: int
    base: str | None
    """Public name of the base model, without folders."""
    trigger: str | None
    """The instance prompt of its training run, with the trigger word."""
    token: str | None
    """The trigger word alone; None where the run's prompts do not tell it."""
    annotator: str | None
    """Name of a control's annotator; None where the adapter is no control."""
    annotator_settings: Mapping[str, Any]
    thumbnail: Path | None
    built_in: bool
    """Whether it comes with the project."""

    @property
    def stamp(self) -> int:
        """Return the time of the last change to the adapter's files, in nanoseconds."""
        return max((path.stat().st_mtime_ns for path in self.folder.rglob("*.safetensors")), default=0)


def check_name(name: str) -> str:
    """Return a name without surrounding spaces.

    Raises:
        ConfigError: the name is invalid for a folder on some operating system.
    """
    name = name.strip() if isinstance(name, str) else ""  # an API may send anything
    if _NAME.fullmatch(name) and not is_portable(name):
        raise ConfigError(f"{name!r} is {UNPORTABLE}: choose another.")
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:80]!r} is no name: use at most 64 letters, digits, spaces, dots, + and -, with a letter or "
            "digit at both ends."
        )
    return name


def read_entry(folder: Path, built_in: bool) -> Entry:
    """Read the facts of an adapter.

    Raises:
        AdapterFileError: the folder holds no adapter, or one with invalid settings.
    """
    try:
        return _entry(folder, built_in)
    except HRAError:
        raise
    except Exception as error:  # for example a list in place of a name, or deeply nested TOML
        raise AdapterFileError(f"The adapter's settings are invalid: {str(error)[:200]}.") from error


def _entry(folder: Path, built_in: bool) -> Entry:
    parts, base = component_folders(folder), base_model(folder)
    ranks = [rank for part in parts.values() if isinstance(rank := read_json(part / CONFIG_FILE).get("r"), int)]
    if len(ranks) < len(parts):
        raise AdapterFileError("The adapter's settings have no rank.")
    encoder = find_encoder(folder)
    config = read_json(encoder / ENCODER_FILES[0]) if encoder else {}
    run, settings = run_settings(folder), config.get("annotator_settings") or {}
    trigger, class_prompt = run.get("instance_prompt"), run.get("class_prompt")
    annotator = str(config.get("annotator", "given")) if encoder else None
    if not isinstance(settings, dict) or not isinstance(trigger, str | None):
        raise AdapterFileError("The adapter's annotator settings or its prompt are invalid.")
    if not is_utf8(f"{folder.name}{base}{trigger}{annotator}"):  # a page could not display it
        raise AdapterFileError("The adapter's name, base, prompt or annotator is not UTF-8.")
    parts_of_prompt = split_prompts(trigger or "", class_prompt) if isinstance(class_prompt, str) else None
    return Entry(
        name=folder.name,
        folder=folder,
        components=tuple(parts),
        rank=max(ranks),
        base=public_name(base) if base else None,
        trigger=trigger,
        token=parts_of_prompt[1] if parts_of_prompt else None,
        annotator=annotator,
        annotator_settings=settings,
        thumbnail=next((folder / name for name in THUMBNAILS if (folder / name).is_file()), None),
        built_in=built_in,
    )
