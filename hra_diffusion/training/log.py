"""log.jsonl: one complete line a step record, in the file as soon as it is written."""

import json
from dataclasses import asdict
from pathlib import Path

from hra_diffusion.formats.files import write_file, writing
from hra_diffusion.training.loop import StepRecord


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
            self._file.write(json.dumps(asdict(record)).encode() + b"\n")

    def read(self) -> bytes:
        """Return what has been written."""
        return self.path.read_bytes()

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_log(path: Path) -> list[StepRecord]:
    """Read the records of a log."""
    return [StepRecord(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
