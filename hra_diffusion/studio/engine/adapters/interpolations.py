"""Adapters between two others by name, ``tiger/interpolated-0.5/teapot``, computed when they are used."""

import hashlib
import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from hra_diffusion.errors import ConfigError, HRAError
from hra_diffusion.formats.folders import holds_adapter
from hra_diffusion.formats.interpolation import interpolate_adapters
from hra_diffusion.studio.engine.adapters.entry import Entry, read_entry

INTERPOLATED = "/interpolated-"
"""Between the name of the first adapter and the position."""
_ADAPTER = r"[^/]{1,64}(?:/checkpoint-\d{1,9})?"
_NAME = re.compile(rf"({_ADAPTER}){INTERPOLATED}(-?\d{{0,2}}\.?\d{{0,6}})/({_ADAPTER})")
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
                f"{name[:80]!r} is no adapter between two others: write FIRST{INTERPOLATED}POSITION/SECOND with a "
                f"position from {LOWEST:g} to {HIGHEST:g}."
            )
        return cls(match[1], match[3], position)

    @property
    def name(self) -> str:
        """The name: see the module."""
        return f"{self.first}{INTERPOLATED}{self.position:g}/{self.second}"

    def entry(self, first: Entry, second: Entry, cache: Path | None) -> Entry:
        """Return the adapter, from the cache or newly computed.

        Args:
            first: the first adapter.
            second: the second one.
            cache: folder for all of these adapters; None refuses them.

        Raises:
            ConfigError: an adapter cannot be interpolated, or the two do not fit.
        """
        if first.base != second.base or not cache:
            raise ConfigError(f"{first.name!r} and {second.name!r} are for different base models: choose two of one.")
        stamp = first.stamp + second.stamp
        key = hashlib.sha256(f"{first.folder}\n{second.folder}\n{stamp}\n{self.position:g}".encode()).hexdigest()[:16]
        with _COMPUTING:
            if not holds_adapter(cache / key):
                try:
                    interpolate_adapters(first.folder, second.folder, self.position, cache / key)
                except HRAError as error:  # a message names no folders
                    message = str(error).replace(str(first.folder), self.first).replace(str(second.folder), self.second)
                    raise ConfigError(message) from error
        facts = read_entry(cache / key, built_in=True)
        return replace(facts, name=self.name, base=first.base, trigger=first.trigger, token=first.token)
