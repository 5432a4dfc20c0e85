"""The bases of the studio: those of ``--base``, and those of earlier starts, which bases.json has."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hra_diffusion.errors import ConfigError, HRAError
from hra_diffusion.formats.files import write_file
from hra_diffusion.formats.folders import public_name
from hra_diffusion.formats.reading import read_json
from hra_diffusion.resources import recorded_path
from hra_diffusion.studio.engine.models.base import Base, read_base

logger = logging.getLogger(__name__)

MAX_RECENT = 8
"""Number of bases that are remembered."""


class Bases:
    """The bases by their public names. The first one is the default; others are read when they are chosen.

    Args:
        sources: folders, single files or names on the hub; or their facts.
        options: options of ``pipelines.load_pipeline`` for all of them.
        file: bases.json, of the bases of earlier starts; None for no memory.

    Raises:
        ConfigError: two of the sources have the same public name.
        ModelError: a source is missing or incomplete.
        OutputError: the file cannot be written.
    """

    def __init__(
        self, sources: Sequence[str | Base], options: Mapping[str, Any] | None = None, file: Path | None = None
    ) -> None:
        self._known: dict[str, Base] = {}
        for source in sources:
            base = source if isinstance(source, Base) else read_base(source, options)
            if base.name in self._known:
                raise ConfigError(f"--base has two models named {base.name!r}: rename the folder of one of them.")
            self._known[base.name] = base
        self.default = next(iter(self._known.values()))
        now = [{"source": recorded_path(base.source), "options": dict(base.options)} for base in self._known.values()]
        earlier = [row for row in _read_rows(file) if row["source"] not in {other["source"] for other in now}]
        self._recent = {public_name(row["source"]): row for row in reversed(earlier)}
        if file:
            rows = [*now, *earlier][:MAX_RECENT]
            write_file(file, lambda path: path.write_text(json.dumps({"bases": rows}, indent=1), encoding="utf-8"))

    @property
    def names(self) -> list[str]:
        """The names, the default first."""
        return list(dict.fromkeys([*self._known, *reversed(self._recent)]))

    def get(self, name: str | None) -> Base:
        """Return a base by name, or the default for None.

        Raises:
            ConfigError: the name is unknown.
            ModelError: its files are missing or incomplete.
        """
        if name is None:
            return self.default
        if name not in self._known:
            if name not in self._recent:
                raise ConfigError(f"There is no base model {name[:80]!r} here; known are: {', '.join(self.names)}.")
            row = self._recent[name]
            self._known[name] = read_base(row["source"], row["options"])
        return self._known[name]

    def find(self, name: str | None) -> Base:
        """Return the base of a recorded name; the default base for None and for a name that is not offered.

        Raises:
            ModelError: its files are missing or incomplete.
        """
        return self.get(name if name in self.names else None)


def _read_rows(file: Path | None) -> list[dict[str, Any]]:
    """Read the bases of earlier starts, the most recent first; without those of damaged or missing files."""
    if file is None or not file.exists():
        return []
    try:
        rows = [{"source": str(row["source"]), "options": dict(row["options"])} for row in read_json(file)["bases"]]
    except (HRAError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s is damaged, and starts anew: %s", file.name, error)
        return []
    return [row for row in rows if Path(row["source"]).exists() or not Path(row["source"]).is_absolute()]
