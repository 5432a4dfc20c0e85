"""The adapters of the studio: folders that `load_hra_weights` takes, each with what is worth knowing of it.

Those that come with the project can be used and not changed; the studio's own are renamed, deleted and added to.
"""

import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hra_diffusion.errors import AdapterFileError, ConfigError, HRAError
from hra_diffusion.formats.contents import read_components
from hra_diffusion.formats.files import read_json, read_tensors, remove_folder, replacing, sync, write_file
from hra_diffusion.formats.folders import (
    ENCODER,
    ENCODER_FILES,
    base_model,
    component_folders,
    find_encoder,
    public_name,
    run_settings,
)
from hra_diffusion.formats.peft import CONFIG_FILE
from hra_diffusion.formats.tokens import FOLDER as TOKENS

logger = logging.getLogger(__name__)

_NAME = re.compile(r"\w[\w .+-]{0,62}\w|\w")
THUMBNAILS = ("thumbnail.png", "before_after.png")
KEPT = ("config.toml", "metrics.md", "metrics.json", *THUMBNAILS)
"""What a run, or an archive, may have beside the adapter."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An adapter in the library."""

    name: str
    folder: Path
    components: tuple[str, ...]
    rank: int
    base: str | None
    """Name of the base model, as it may be published."""
    trigger: str | None
    """The instance prompt of the run that made it."""
    annotator: str | None
    """What it follows, where it is a control."""
    annotator_settings: Mapping[str, Any]
    thumbnail: Path | None
    built_in: bool
    """Whether it came with the project."""

    @property
    def stamp(self) -> int:
        """Changes when the adapter's files do."""
        return max((path.stat().st_mtime_ns for path in self.folder.rglob("*.safetensors")), default=0)


class Library:
    """The adapters in some folders; later ones hide those of the same name in earlier ones."""

    def __init__(self, folder: Path, built_in: Path | None = None) -> None:
        self.folder = folder
        self.built_in = built_in
        self._told: set[Path] = set()

    def entries(self) -> list[Entry]:
        """All adapters, by name; folders that hold none, or a damaged one, are passed over with a warning."""
        found = {entry.name: entry for entry in self._entries(self.built_in, built_in=True)}
        found |= {entry.name: entry for entry in self._entries(self.folder, built_in=False)}
        return [found[name] for name in sorted(found, key=str.casefold)]

    def entry(self, name: str) -> Entry:
        """Find an adapter.

        Raises:
            ConfigError: there is none of this name.
        """
        entries = {entry.name: entry for entry in self.entries()}
        if not isinstance(name, str) or name not in entries:
            known = ", ".join(entries) or "none"
            raise ConfigError(f"There is no adapter named {str(name)[:80]!r} in the library; known are: {known}.")
        return entries[name]

    def rename(self, name: str, new_name: str) -> str:
        """Rename an adapter of the studio's own; returns the new name.

        Raises:
            ConfigError: it is not there or not the studio's own, or the new name is taken or cannot be used.
        """
        folder = self._own(name).folder
        folder.rename(self.free_place(new_name))
        sync(self.folder)
        return new_name.strip()

    def delete(self, name: str) -> None:
        """Delete an adapter of the studio's own.

        Raises:
            ConfigError: it is not there, or not the studio's own.
        """
        remove_folder(self._own(name).folder)

    def free_place(self, name: str) -> Path:
        """Return the folder for a new adapter.

        Raises:
            ConfigError: the name is taken, or cannot be a folder's.
        """
        name = check_name(name)
        if name.casefold() in {entry.name.casefold() for entry in self.entries()} or (self.folder / name).exists():
            raise ConfigError(f"There is something named {name!r} in the library already: choose another name.")
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def free_name(self, wanted: str) -> str:
        """Return the name, with a number behind it where it is taken."""
        taken = {entry.name.casefold() for entry in self.entries()}
        names: Iterator[str] = (wanted if n == 1 else f"{wanted} {n}" for n in range(1, len(taken) + 2))
        return next(name for name in names if name.casefold() not in taken)

    def add(self, source: Path, name: str, thumbnail: Path | None = None) -> Entry:
        """Copy an adapter, once all of it has been read and found whole, with what its run left beside it.

        Args:
            source: the adapter's folder, or the output folder of the run that made it.
            name: what it is to be called.
            thumbnail: an image of it.

        Raises:
            AdapterFileError: there is none, or it is damaged.
            ConfigError: the name is taken or cannot be used.
            OutputError: it cannot be written; nothing is.
        """
        place = self.free_place(name)
        read_components(source)
        encoder = find_encoder(source)
        if encoder:
            read_tensors(encoder / ENCODER_FILES[1])
        with replacing(place) as new:
            for component, part in component_folders(source).items():
                shutil.copytree(part, new / component, ignore=shutil.ignore_patterns("[!a]*"))
                if (tokens := part.parent / TOKENS).is_dir():
                    shutil.copytree(tokens, new / TOKENS, dirs_exist_ok=True)
            for name in ENCODER_FILES if encoder else ():
                (new / ENCODER).mkdir(exist_ok=True)
                shutil.copyfile(encoder / name, new / ENCODER / name)
            for kept in KEPT:
                if (source / kept).is_file():
                    shutil.copyfile(source / kept, new / kept)
            if thumbnail:
                shutil.copyfile(thumbnail, new / THUMBNAILS[0])
            read_entry(new, built_in=False)
        return self.entry(place.name)

    def set_thumbnail(self, name: str, image: Path) -> None:
        """Show an adapter of the studio's own by this image.

        Raises:
            ConfigError: it is not there, or not the studio's own.
        """
        write_file(self._own(name).folder / THUMBNAILS[0], lambda path: shutil.copyfile(image, path))

    def _own(self, name: str) -> Entry:
        entry = self.entry(name)
        if entry.built_in:
            raise ConfigError(f"{name!r} comes with the project: it can be used and exported, but not changed.")
        return entry

    def _entries(self, folder: Path | None, *, built_in: bool) -> Iterator[Entry]:
        for place in sorted(folder.iterdir()) if folder and folder.is_dir() else ():
            if place.is_dir() and not place.name.startswith("."):
                try:
                    yield read_entry(place, built_in)
                except HRAError as error:  # what is not listed cannot be chosen
                    if place not in self._told:
                        logger.warning("%s is passed over: %s", place.name, error)
                    self._told.add(place)


def check_name(name: str) -> str:
    """Return a name without spaces around it.

    Raises:
        ConfigError: it could not be a folder's on every system.
    """
    name = name.strip() if isinstance(name, str) else ""  # an API may send anything
    if not _NAME.fullmatch(name) or name.split(".")[0].upper() in ("CON", "PRN", "AUX", "NUL"):
        raise ConfigError(
            f"{name[:80]!r} is no name: use at most 64 letters, digits, spaces, dots, + and -, with a letter or "
            "digit at both ends."
        )
    return name


def read_entry(folder: Path, built_in: bool) -> Entry:
    """Read what is worth knowing of an adapter.

    Raises:
        AdapterFileError: there is none, or it says of itself what no adapter does.
    """
    try:
        return _entry(folder, built_in)
    except HRAError:
        raise
    except Exception as error:  # such as a list for a name, or TOML that is nested too deeply
        raise AdapterFileError(f"The adapter says of itself what none does: {str(error)[:200]}.") from error


def _entry(folder: Path, built_in: bool) -> Entry:
    parts, base = component_folders(folder), base_model(folder)
    ranks = [read_json(part / CONFIG_FILE).get("r") for part in parts.values()]
    if not all(isinstance(rank, int) for rank in ranks):
        raise AdapterFileError("The adapter does not say its rank.")
    encoder = find_encoder(folder)
    said = read_json(encoder / ENCODER_FILES[0]) if encoder else {}
    settings, trigger = said.get("annotator_settings") or {}, run_settings(folder).get("instance_prompt")
    if not isinstance(settings, dict) or not isinstance(trigger, str | None):
        raise AdapterFileError("The adapter has settings of its annotator, or a prompt, that are none.")
    return Entry(
        name=folder.name,
        folder=folder,
        components=tuple(parts),
        rank=max(ranks),
        base=public_name(base) if base else None,
        trigger=trigger,
        annotator=str(said.get("annotator", "given")) if encoder else None,
        annotator_settings=settings,
        thumbnail=next((folder / name for name in THUMBNAILS if (folder / name).is_file()), None),
        built_in=built_in,
    )
