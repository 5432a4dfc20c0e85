"""A run's results on disk: the adapter, whole or not at all, and the log."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hra_diffusion.errors import OutputError
from hra_diffusion.formats.files import sync, writing
from hra_diffusion.training.loop import StepRecord


def check_writable(folder: Path) -> None:
    """Make sure that files can be written below ``folder``, leaving no trace.

    Raises:
        OutputError: a part of the path is a file, or the nearest folder that exists refuses a new file.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OutputError(
            f"The output folder {folder} cannot be written ({error.strerror}: {existing}): "
            "choose another with --output_dir."
        ) from error


def save_adapter(components: Mapping[str, Any], folder: Path) -> None:
    """Save adapted components, ``<folder>/<name>/`` each, all of them or none; a folder that was there is replaced.

    Raises:
        OutputError: the folder cannot be written; what was there before is intact.
    """
    new, old = (folder.with_name(f".{os.getpid()}-{kind}-{folder.name}") for kind in ("new", "old"))
    with writing(folder):
        try:
            for name, component in components.items():
                component.save_pretrained(new / name)
            for path in (*new.rglob("*"), new):
                sync(path)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            sync(folder.parent)
        finally:
            if old.exists() and not folder.exists():
                old.rename(folder)
            for leftover in (new, old):
                shutil.rmtree(leftover, ignore_errors=True)


class Log:
    """A JSONL file: one complete line a step record, in the file as soon as it is written."""

    def __init__(self, path: Path) -> None:
        """Start the file anew."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", encoding="utf-8")

    def write(self, record: StepRecord) -> None:
        """Append a record."""
        self._file.write(json.dumps(asdict(record)) + "\n")
        self._file.flush()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
