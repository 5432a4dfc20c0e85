"""What a lesson costs on this machine: measured once for a base, so that presets can say it before one is chosen.

    seconds = before + steps · seconds a step

Drawing comes on top: images of the class, and looks on the way.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.files import read_json, write_file
from hra_diffusion.studio.engine.training_job import Preset

_TIME = re.compile(r"([\d.]+) s a step, .* and (\d+) s before")
_MEMORY = re.compile(r"([\d.]+) GB")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """As it was measured."""

    step: float
    """Seconds."""
    before: float
    """Seconds, for reading the model and the images."""
    memory: float
    """GB at most."""

    def seconds(self, effort: Preset) -> float:
        """Return how long an effort takes."""
        return self.before + self.step * effort.steps


class Costs:
    """Costs of bases, in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def of(self, base: str) -> Cost | None:
        """Return what was measured for a base, if anything was."""
        try:
            return Cost(**self._read()[base])
        except (KeyError, TypeError):
            return None

    def keep(self, base: str, told: Mapping[str, str]) -> None:
        """Keep what ``--dry_run`` told of a base, by its labels."""
        time, memory = _TIME.search(told.get("time", "")), _MEMORY.search(told.get("memory", ""))
        if time and memory:
            cost = Cost(step=float(time[1]), before=float(time[2]), memory=float(memory[1]))
            text = json.dumps(self._read() | {base: asdict(cost)})
            write_file(self.file, lambda path: path.write_text(text, encoding="utf-8"))

    def _read(self) -> dict[str, dict[str, float]]:
        try:
            return read_json(self.file)
        except AdapterFileError:  # nothing was measured yet
            return {}
