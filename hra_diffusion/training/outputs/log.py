"""log.jsonl: one JSON line per step record, flushed at once."""

import json
from collections.abc import Callable
from dataclasses import asdict
from math import isfinite, nan
from pathlib import Path
from typing import Any

from hra_diffusion.formats.files import write_file, writing
from hra_diffusion.training.loop.steps import StepRecord


class Log:
    """The log of a run, to use in a ``with`` block."""

    def __init__(self, path: Path, start: bytes = b"") -> None:
        """Create or replace the file, with the lines of earlier steps.

        Raises:
            OutputError: the file cannot be written.
        """
        self.path = path
        write_file(path, lambda new: new.write_bytes(start))
        self._file = path.open("ab", buffering=0)

    def write(self, record: StepRecord) -> None:
        """Append a record.

        Raises:
            OutputError: the disk is full.
        """
        with writing(self.path):
            self._file.write(json.dumps(_finite(asdict(record)), allow_nan=False).encode() + b"\n")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_log(path: Path) -> list[StepRecord]:
    """Read the records of a log, up to the last complete line; NaN and infinite numbers are read as NaN."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [
        StepRecord(**_map_values(json.loads(line), lambda value: nan if value is None else value)) for line in lines
    ]


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON lacks, by None: gradients of first steps may overflow in half precision."""
    return _map_values(values, lambda value: value if isfinite(value) else None)


def _map_values(values: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Apply a function to the values of nested dicts."""
    return {k: _map_values(value, change) if isinstance(value, dict) else change(value) for k, value in values.items()}
