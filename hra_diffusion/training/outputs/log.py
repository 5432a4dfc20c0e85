"""log.jsonl: one JSON line per step record, written as soon as the step's numbers are known."""

import json
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from math import isfinite, nan
from pathlib import Path
from typing import Any

from hra_diffusion.errors import DivergedError
from hra_diffusion.formats.files import write_file, writing
from hra_diffusion.training.loop.steps import StepRecord


class Log:
    """The log of a run, to use in a ``with`` block."""

    def __init__(self, path: Path, start: bytes = b"", report: Callable[[StepRecord], object] | None = None) -> None:
        """Create or replace the file, with the lines of earlier steps.

        Args:
            path: the file.
            start: lines of earlier steps.
            report: called with each record after its line is written.

        Raises:
            OutputError: the file cannot be written.
        """
        self.path = path
        self._report = report
        self._unwritten: deque[StepRecord] = deque()
        write_file(path, lambda new: new.write_bytes(start))
        self._file = path.open("ab", buffering=0)

    def write(self, record: StepRecord) -> None:
        """Append a record once its numbers are known: now, or at a later call of this method or of `flush`.

        Raises:
            OutputError: the disk is full.
        """
        self._unwritten.append(record)
        self.flush()

    def flush(self) -> None:
        """Append the records whose numbers have become known.

        Raises:
            OutputError: the disk is full.
        """
        while self._unwritten and self._unwritten[0].is_read:
            record = self._unwritten.popleft()
            with writing(self.path):
                values = {name: value for name, value in asdict(record).items() if value is not None}
                self._file.write(json.dumps(_finite(values), allow_nan=False).encode() + b"\n")
            if self._report:
                self._report(record)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, (GeneratorExit, DivergedError)):  # also if the caller needs no more steps
            with suppress(DivergedError):
                for record in self._unwritten:
                    record.read()
            self.flush()
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
