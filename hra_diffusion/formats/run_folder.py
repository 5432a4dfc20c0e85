"""What a run leaves beside its adapter: config.toml, before_after.png, the numbers of ``hra-diffusion evaluate``.

The adapter may be named by the run's folder or by its own, one below. TOML is in Python since 3.11, in tomli before.
"""

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["of_run", "tomllib"]


def of_run(folder: str | Path, name: str) -> Path | None:
    """Find a file of the run that made an adapter, in its folder or the one above."""
    folder = Path(folder)
    return next((path for path in (folder / name, folder.absolute().parent / name) if path.is_file()), None)
