"""What a run leaves beside its adapter: config.toml, before_after.png, the numbers of ``hra-diffusion evaluate``.

The adapter may be named by the run's folder or by its own, one below. TOML is in Python since 3.11, in tomli before.
"""

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "FIGURE",
    "METRICS",
    "RESULTS",
    "SHEET",
    "TABLE",
    "is_run",
    "result_file",
    "run_file",
    "results_folder",
    "tomllib",
]

SHEET, METRICS, TABLE, FIGURE = "before_after.png", "metrics.json", "metrics.md", "metrics.png"
RESULTS = (SHEET, METRICS, TABLE, FIGURE)
"""What is seen and measured of an adapter, in its folder or beside a run's ``adapter``."""


def run_file(folder: str | Path, name: str) -> Path | None:
    """Find a file of the run that made an adapter, a checkpoint's too, in its folder or the one above."""
    folder = Path(folder)
    return next((path for path in (folder / name, folder.absolute().parent / name) if path.is_file()), None)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / "config.toml").is_file() and (folder / "log.jsonl").is_file()


def results_folder(folder: str | Path) -> Path:
    """Return where results about an adapter lie: in its folder, but of a run's final one beside it."""
    folder = Path(folder).absolute()
    is_final = folder.name == "adapter" and (folder.parent / "config.toml").is_file()
    return folder.parent if is_final else folder


def result_file(folder: str | Path, name: str) -> Path | None:
    """Find a result about an adapter; a checkpoint's are not those of its run."""
    path = results_folder(folder) / name
    return path if path.is_file() else None
