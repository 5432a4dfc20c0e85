"""Adapters on the Hugging Face hub."""

import inspect
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from hra_diffusion.errors import AdapterFileError


def local_folder(source: str | Path, subfolder: str | None, files: Iterable[str], **hub: Any) -> Path:
    """Return where an adapter is on this machine: a folder here, or the hub's, fetched into the cache.

    Args:
        source: a folder, or the id of a repository on the hub.
        subfolder: where in it to look.
        files: the names or patterns of what to fetch of it.
        hub: what `huggingface_hub.snapshot_download` takes: revision, token, cache_dir, …

    Raises:
        AdapterFileError: it looks like a repository of the hub, which does not have it or cannot be asked.
        TypeError: the hub takes no argument of some name.
    """
    if unknown := sorted(hub.keys() - inspect.signature(snapshot_download).parameters.keys()):
        raise TypeError(f"There is no argument named {', '.join(unknown)}, here or for the hub.")
    within = Path(source) / (subfolder or "")
    if within.exists() or not isinstance(source, str) or source.count("/") != 1:
        return within
    patterns = [f"{subfolder}/{name}" if subfolder else name for name in files]
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, **hub)) / (subfolder or "")
    except (OSError, ValueError) as error:
        raise AdapterFileError(f"{source!r} is no folder here, and the hub cannot be asked for it: {error}") from error
