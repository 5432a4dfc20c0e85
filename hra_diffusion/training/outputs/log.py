"""log.jsonl: one complete line a step record, in the file as soon as it is written."""

import json
from collections.abc import Callable
from dataclasses import asdict
from math import isfinite, nan
from pathlib import Path
from typing import Any

from hra_diffusion.formats.files import write_file, writing
from hra_diffusion.training.loop.steps import StepRecord


class Log:
    """The log of a run, to be used in a ``with`` block."""

    def __init__(self, path: Path, start: bytes = b"") -> None:
        """Begin the file anew, with the lines of the steps that are done.

        Raises:
            OutputError: it cannot be written.
        """
        self.path = path
        write_file(path, lambda place: place.write_bytes(start))
        self._file = path.open("ab", buffering=0)

    def write(self, record: StepRecord) -> None:
        """Append a record.

        Raises:
            OutputError: the disk is full.
        """
        with writing(self.path):
            self._file.write(json.dumps(_finite(asdict(record)), allow_nan=False).encode() + b"\n")

    def read(self) -> bytes:
        """Return what has been written."""
        return self.path.read_bytes()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_log(path: Path) -> list[StepRecord]:
    """Read the records of a log; numbers that were not finite are not known any more: NaN."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [StepRecord(**_each(json.loads(line), lambda value: nan if value is None else value)) for line in lines]


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Write null for what JSON has no number for: in half precision, the first steps' gradients may overflow."""
    return _each(values, lambda value: value if isfinite(value) else None)


def _each(values: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    return {key: _each(each, change) if isinstance(each, dict) else change(each) for key, each in values.items()}
