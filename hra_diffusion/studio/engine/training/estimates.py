"""Estimates of a training job's time and memory on this machine, measured once per base by a dry run.

    seconds = before + steps · seconds a step

Class images and validation images take additional time.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.files import write_file
from hra_diffusion.formats.reading import read_json
from hra_diffusion.studio.engine.training.training_job import Preset

_TIME = re.compile(r"([\d.]+) s a step, .* and (\d+) s before")
_MEMORY = re.compile(r"([\d.]+) GB")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Time and memory of a base, as measured."""

    step: float
    """Seconds a step."""
    before: float
    """Seconds before the first step, for loading the model and the images."""
    memory: float
    """Peak memory in GB."""

    def __post_init__(self) -> None:
        """Raise TypeError for anything but finite numbers: the file may be damaged."""
        if not all(type(value) in (int, float) and math.isfinite(value) for value in vars(self).values()):
            raise TypeError

    def seconds(self, preset: Preset) -> float:
        """Return the training time of a preset, in seconds."""
        return self.before + self.step * preset.steps


class Estimates:
    """The estimates of all bases, in a JSON file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def get(self, base: str) -> Estimate | None:
        """Return the estimate of a base, or None before the first dry run."""
        try:
            return Estimate(**self._load()[base])
        except (KeyError, TypeError, OverflowError):
            return None

    def save(self, base: str, report: Mapping[str, str]) -> None:
        """Save the estimate of a base.

        Args:
            base: the model.
            report: the lines of ``--dry_run`` by label; one without a time or memory is ignored.
        """
        time, memory = _TIME.search(report.get("time", "")), _MEMORY.search(report.get("memory", ""))
        if time and memory:
            estimate = Estimate(step=float(time[1]), before=float(time[2]), memory=float(memory[1]))
            text = json.dumps(self._load() | {base: asdict(estimate)})
            write_file(self.file, lambda path: path.write_text(text, encoding="utf-8"))

    def _load(self) -> dict[str, dict[str, float]]:
        try:
            return read_json(self.file)
        except AdapterFileError:  # nothing has been measured yet
            return {}
