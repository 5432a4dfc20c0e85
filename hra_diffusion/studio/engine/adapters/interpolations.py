"""Adapters between two others by name, ``tiger/interpolated-0.5/teapot``, computed when they are used."""

import hashlib
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from hra_diffusion.errors import ConfigError, HRAError
from hra_diffusion.formats.folders import holds_adapter
from hra_diffusion.formats.interpolation import interpolate_adapters

MARK = "/interpolated-"
"""Between the name of the first adapter and the position."""
_ADAPTER = r"[^/]{1,64}(?:/checkpoint-\d{1,9})?"
_NAME = re.compile(rf"({_ADAPTER}){MARK}(-?\d{{0,2}}\.?\d{{0,6}})/({_ADAPTER})")
LOWEST, HIGHEST = -1.0, 2.0
_COMPUTING = threading.Lock()


@dataclass(frozen=True)
class Interpolation:
    """A position between two adapters: 0 is the first, 1 the second."""

    first: str
    second: str
    position: float

    @classmethod
    def parse(cls, name: str) -> "Interpolation":
        """Parse the name of an adapter between two others.

        Raises:
            ConfigError: the name has another form, or the position is out of range.
        """
        match = _NAME.fullmatch(name[:300])
        try:
            position = float(match[2]) if match else float("nan")
        except ValueError:
            position = float("nan")
        if not match or not LOWEST <= position <= HIGHEST:
            raise ConfigError(
                f"{name[:80]!r} is no adapter between two others: write FIRST{MARK}POSITION/SECOND with a position "
                f"from {LOWEST:g} to {HIGHEST:g}."
            )
        return cls(match[1], match[3], position)

    @property
    def name(self) -> str:
        """The name: see the module."""
        return f"{self.first}{MARK}{self.position:g}/{self.second}"

    def compute(self, first: Path, second: Path, stamp: int, cache: Path) -> Path:
        """Write the adapter, unless it exists, and return its folder.

        Args:
            first: folder of the first adapter.
            second: folder of the second one.
            stamp: changes with the files of both.
            cache: folder for all of these adapters.

        Raises:
            ConfigError: an adapter cannot be interpolated, or the two do not fit.
        """
        key = hashlib.sha256(f"{first}\n{second}\n{stamp}\n{self.position:g}".encode()).hexdigest()[:16]
        folder = cache / key
        with _COMPUTING:
            if not holds_adapter(folder):
                try:
                    interpolate_adapters(first, second, self.position, folder)
                except HRAError as error:  # a message names no folders
                    message = str(error).replace(str(first), self.first).replace(str(second), self.second)
                    raise ConfigError(message) from error
        return folder
