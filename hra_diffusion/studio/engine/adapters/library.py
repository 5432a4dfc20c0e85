"""The adapter library: folders for `load_hra_weights`, with the facts of each adapter.

Adapters of the project are read-only; those of the studio can be added, renamed and deleted.
"""

import filecmp
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hra_diffusion.errors import AdapterFileError, ConfigError, HRAError
from hra_diffusion.formats.contents import read_components
from hra_diffusion.formats.files import UNPORTABLE, is_portable, remove_folder, replacing, sync, write_file
from hra_diffusion.formats.folders import (
    ENCODER,
    ENCODER_FILES,
    base_model,
    component_folders,
    find_encoder,
    public_name,
    run_settings,
    tokens_beside,
)
from hra_diffusion.formats.peft import CONFIG_FILE, FILES, WEIGHTS_FILE
from hra_diffusion.formats.reading import read_json
from hra_diffusion.formats.run_folder import BASE_FILE, METRICS, SHEET, TABLE
from hra_diffusion.formats.tensors import read_tensors
from hra_diffusion.formats.tokens import PATTERN as TOKENS
from hra_diffusion.studio.engine.adapters import interpolations
from hra_diffusion.studio.engine.adapters.interpolations import Interpolation
from hra_diffusion.studio.engine.adapters.subject_prompts import split_prompts
from hra_diffusion.text import is_utf8, printable
from hra_diffusion.training.outputs.checkpoint import checkpoints

logger = logging.getLogger(__name__)

_NAME = re.compile(r"\w[\w .+-]{0,62}\w|\w")
THUMBNAILS = ("thumbnail.png", SHEET)
CHECKPOINT = "/checkpoint-"
"""Between a training job and a number of steps, the name of the adapter in a checkpoint."""
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


class Library:
    """The adapters of the studio's folder and the project's; the studio's hide the project's of the same name.

    Args:
        folder: the studio's adapters.
        built_in: the project's adapters.
        runs: training jobs, whose checkpoints are adapters by the name of ``tiger/checkpoint-100``.
        cache: folder for adapters between two others, by the name of ``tiger/interpolated-0.5/teapot``.
    """

    def __init__(
        self, folder: Path, built_in: Path | None = None, runs: Path | None = None, cache: Path | None = None
    ) -> None:
        self.folder = folder
        self.built_in, self.runs, self.cache = built_in, runs, cache
        self._warned: set[Path] = set()

    def entries(self) -> list[Entry]:
        """Return all adapters, sorted by name; folders without a valid adapter are skipped with a warning."""
        entries = {entry.name: entry for entry in self._entries(self.built_in, built_in=True)}
        entries |= {entry.name: entry for entry in self._entries(self.folder, built_in=False)}
        return [entries[name] for name in sorted(entries, key=str.casefold)]

    def entry(self, name: str) -> Entry:
        """Return an adapter by name, or the adapter in a training job's checkpoint, or one between two others.

        Raises:
            AdapterFileError: the checkpoint's adapter is damaged.
            ConfigError: the name is unknown, or two adapters cannot be interpolated.
        """
        if isinstance(name, str) and interpolations.MARK in name:
            return self._interpolated(Interpolation.parse(name))
        if isinstance(name, str) and CHECKPOINT in name:
            return self._checkpoint(name)
        entries = {entry.name: entry for entry in self.entries()}
        if not isinstance(name, str) or name not in entries:
            known = ", ".join(entries) or "none"
            raise ConfigError(f"There is no adapter named {str(name)[:80]!r} in the library; known are: {known}.")
        return entries[name]

    def find(self, name: str) -> Entry | None:
        """Return an adapter by name, or None."""
        with suppress(HRAError):
            return self.entry(name)

    def rename(self, name: str, new_name: str) -> str:
        """Rename an adapter of the studio and return the new name.

        Raises:
            ConfigError: the adapter is unknown or the project's, or the new name is taken or invalid.
        """
        folder = self._editable(name).folder
        folder.rename(self.new_entry_folder(new_name))
        sync(self.folder)
        return new_name.strip()

    def delete(self, name: str) -> None:
        """Delete an adapter of the studio.

        Raises:
            ConfigError: the adapter is unknown, or the project's.
        """
        remove_folder(self._editable(name).folder)

    def new_entry_folder(self, name: str) -> Path:
        """Return the folder for a new adapter.

        Raises:
            ConfigError: the name is taken or invalid.
        """
        name = check_name(name)
        if name.casefold() in {entry.name.casefold() for entry in self.entries()} or (self.folder / name).exists():
            raise ConfigError(f"The library has an adapter named {name!r} already: choose another name.")
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def free_name(self, wanted: str, others: Sequence[str] = ()) -> str:
        """Return the name, followed by a number if an adapter or one of the others has it."""
        taken = {name.casefold() for name in (*others, *(entry.name for entry in self.entries()))}
        names: Iterator[str] = (wanted if n == 1 else f"{wanted} {n}" for n in range(1, len(taken) + 2))
        return next(name for name in names if name.casefold() not in taken)

    def add(self, source: Path, name: str, thumbnail: Path | None = None) -> Entry:
        """Check an adapter completely, then copy it with the extra files of its run.

        Args:
            source: the adapter's folder, or the output folder of the run that made it.
            name: its name in the library.
            thumbnail: an image of it.

        Raises:
            AdapterFileError: the folder holds no adapter, or a damaged one.
            ConfigError: the name is taken or invalid.
            OutputError: the copy cannot be written; the library is unchanged.
        """
        target = self.new_entry_folder(name)
        read_components(source)
        parts, encoder = component_folders(source), find_encoder(source)
        tokens_beside(parts)
        if encoder:
            read_tensors(encoder / ENCODER_FILES[1])
        files = {Path(component, name): part / name for component, part in parts.items() for name in FILES}
        roots = {part if component == "" else part.parent for component, part in parts.items()}
        files |= {path.relative_to(root): path for root in roots for path in root.glob(TOKENS)}
        files |= {Path(ENCODER, name): encoder / name for name in ENCODER_FILES if encoder}
        files |= {Path(name): source / name for name in EXTRA_FILES if (source / name).is_file()}
        files |= {Path(THUMBNAILS[0]): thumbnail} if thumbnail else {}
        with replacing(target) as new:
            for relative, path in files.items():
                (new / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, new / relative)
            read_entry(new, built_in=False)
        return self.entry(target.name)

    def find_copy(self, source: Path) -> Entry | None:
        """Return an adapter of the studio with the same weights, if any.

        Args:
            source: an adapter's folder, or the output folder of a run.
        """
        parts = component_folders(source)
        for entry in self._entries(self.folder, built_in=False):
            pairs = [(part / WEIGHTS_FILE, entry.folder / name / WEIGHTS_FILE) for name, part in parts.items()]
            if all(copy.is_file() and filecmp.cmp(file, copy, shallow=False) for file, copy in pairs):
                return entry
        return None

    def set_thumbnail(self, name: str, image: Path) -> None:
        """Set the thumbnail of an adapter of the studio.

        Raises:
            ConfigError: the adapter is unknown, or the project's.
        """
        write_file(self._editable(name).folder / THUMBNAILS[0], lambda path: shutil.copyfile(image, path))

    def checkpoint_steps(self, job: str) -> list[str]:
        """Return the steps of a training job's checkpoints; empty without such a job."""
        run = self.runs / check_name(job) if self.runs else None
        return [path.name.rpartition("-")[2] for path in checkpoints(run)] if run else []

    def _checkpoint(self, name: str) -> Entry:
        """Return the adapter in a checkpoint."""
        job, _, step = name.rpartition(CHECKPOINT)
        steps = self.checkpoint_steps(job)
        if not self.runs or step not in steps:
            known = ", ".join(steps) or "none"
            raise ConfigError(f"The training job {job!r} has no checkpoint {step[:80]!r}; known are: {known}.")
        folder = self.runs / check_name(job) / f"checkpoint-{step}" / "adapter"
        return replace(read_entry(folder, built_in=True), name=name)

    def _interpolated(self, interpolation: Interpolation) -> Entry:
        """Return the adapter between two others, from the cache or newly computed."""
        first, second = self.entry(interpolation.first), self.entry(interpolation.second)
        if first.base != second.base or not self.cache:
            raise ConfigError(f"{first.name!r} and {second.name!r} are for different base models: choose two of one.")
        stamp = first.stamp + second.stamp
        folder = interpolation.compute(first.folder, second.folder, stamp, self.cache)
        facts = read_entry(folder, built_in=True)
        return replace(facts, name=interpolation.name, base=first.base, trigger=first.trigger, token=first.token)

    def _editable(self, name: str) -> Entry:
        entry = self.entry(name)
        if entry.name != entry.folder.name:
            raise ConfigError(
                f"{name!r} is a checkpoint of a training job, or between two adapters: it can be used, but not changed."
            )
        if entry.built_in:
            raise ConfigError(f"{name!r} comes with the project: it can be used and exported, but not changed.")
        return entry

    def _entries(self, folder: Path | None, *, built_in: bool) -> Iterator[Entry]:
        for path in sorted(folder.iterdir()) if folder and folder.is_dir() else ():
            if path.is_dir() and not path.name.startswith("."):
                try:
                    yield read_entry(path, built_in)
                except HRAError as error:  # an adapter outside the list cannot be chosen
                    if path not in self._warned:
                        logger.warning("%s", printable(f"{path.name} is skipped: {error}"))
                    self._warned.add(path)


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
