"""The adapter library: folders for `load_hra_weights`, with the facts of each adapter.

Adapters of the project are read-only; those of the studio can be added, renamed and deleted.
"""

import filecmp
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from hra_diffusion.errors import ConfigError, HRAError
from hra_diffusion.formats.contents import read_components
from hra_diffusion.formats.files import remove_folder, replacing, sync, write_file
from hra_diffusion.formats.folders import (
    ENCODER,
    ENCODER_FILES,
    component_folders,
    find_encoder,
    tokens_beside,
)
from hra_diffusion.formats.peft import FILES, WEIGHTS_FILE
from hra_diffusion.formats.tensors import read_tensors
from hra_diffusion.formats.tokens import PATTERN as TOKENS
from hra_diffusion.studio.engine.adapters.checkpoints import CHECKPOINT, Checkpoints
from hra_diffusion.studio.engine.adapters.entry import EXTRA_FILES, THUMBNAILS, Entry, check_name, read_entry
from hra_diffusion.studio.engine.adapters.interpolations import INTERPOLATED, Interpolation
from hra_diffusion.text import printable

logger = logging.getLogger(__name__)


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
        self.built_in, self._cache = built_in, cache
        self.checkpoints = Checkpoints(runs)
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
        if isinstance(name, str) and INTERPOLATED in name:
            between = Interpolation.parse(name)
            return between.entry(self.entry(between.first), self.entry(between.second), self._cache)
        if isinstance(name, str) and CHECKPOINT in name:
            return self.checkpoints.entry(name)
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
