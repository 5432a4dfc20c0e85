"""Checkpoints: everything a run needs to resume exactly; a checkpoint is complete or absent.

    checkpoint-100/
    ├── adapter/                     an adapter for ``hra-diffusion generate --adapter``
    ├── log.jsonl                    the log up to this step
    ├── training_state.safetensors   tensors: weights, optimizer, EMA
    └── training_state.json          other state, and the fingerprint of the run

A checkpoint has no random state: the random numbers of step 300 depend on the seed and on 300 alone, see
:mod:`hra_diffusion.training.rng`.
"""

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from hra_diffusion.errors import AdapterFileError, OutputError
from hra_diffusion.formats.files import remove_folder, replacing, write_together
from hra_diffusion.formats.nested import flatten, restore
from hra_diffusion.formats.reading import read_json
from hra_diffusion.formats.tensors import read_tensors
from hra_diffusion.training.config.file import changed_settings

logger = logging.getLogger(__name__)

TENSORS, REST, LOG = "training_state.safetensors", "training_state.json", "log.jsonl"

_FINGERPRINT = "identity"
"""Key of the run's fingerprint in REST. It keeps its first name, so that existing checkpoints stay readable."""


Save = Callable[[Path], object]
"""Writes a trained part of a pipeline into a folder: an adapted component, token embeddings, a condition encoder."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run after a step."""

    step: int
    """Number of optimizer steps done."""
    fingerprint: Mapping[str, Any]
    """The run's fingerprint, as JSON: see :func:`hra_diffusion.training.outputs.resuming.fingerprint`."""
    state: Any
    """State of the trainer: nested dicts with tensors."""
    log: bytes
    """Contents of log.jsonl."""


def save_adapter(components: Mapping[str, Save], folder: Path, files: Mapping[str, bytes] | None = None) -> None:
    """Save components as ``<folder>/<name>/``, and files, all or none; replace an existing folder.

    Raises:
        OutputError: the folder cannot be written; an existing one is intact.
    """
    with replacing(folder) as new:
        for name, save_component in components.items():
            save_component(new / name)
        write_together({new / name: content for name, content in (files or {}).items()})


def save_checkpoint(
    path: Path, checkpoint: Checkpoint, components: Mapping[str, Save], files: Mapping[str, bytes] | None = None
) -> None:
    """Write ``checkpoint-<step>`` in a run's folder; components and files are those of `save_adapter`.

    Raises:
        OutputError: it cannot be written; earlier ones are intact.
    """
    described, tensors = flatten(checkpoint.state)
    rest = {"step": checkpoint.step, _FINGERPRINT: checkpoint.fingerprint, "state": described}
    contents = {TENSORS: save(tensors), REST: json.dumps(rest).encode(), LOG: checkpoint.log}
    try:
        with replacing(path) as new:
            save_adapter(components, new / "adapter", files)
            write_together({new / name: content for name, content in contents.items()})
    except OutputError as error:
        needed = sum(map(len, contents.values())) / 1e6
        earlier = [old.name for old in checkpoints(path.parent) if old != path]
        remedy = f"Resume from {earlier[-1]} with --resume_from_checkpoint latest" if earlier else "There is none yet"
        removable = f"; {', '.join(earlier[:-1])} can be deleted" if earlier[1:] else ""
        raise OutputError(
            f"{error} A checkpoint takes {needed:.1f} MB and its adapter. {remedy}{removable}."
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        AdapterFileError: it is missing or damaged.
    """
    rest = read_json(path / REST)
    step, fingerprint = read_progress(path)
    try:
        state = restore(rest["state"], read_tensors(path / TENSORS))
        return Checkpoint(step=step, fingerprint=fingerprint, state=state, log=(path / LOG).read_bytes())
    except (KeyError, OSError) as error:
        raise AdapterFileError(f"The checkpoint {path} is incomplete ({error}): use an earlier one.") from error


def read_progress(path: Path) -> tuple[int, Mapping[str, Any]]:
    """Read the number of steps done and the run's fingerprint from a checkpoint.

    Raises:
        AdapterFileError: it is missing or damaged.
    """
    rest = read_json(path / REST)
    if not (isinstance(rest.get("step"), int) and isinstance(rest.get(_FINGERPRINT), dict)):
        raise AdapterFileError(f"The checkpoint {path} is damaged: {REST} lacks the step or the run's fingerprint.")
    return rest["step"], rest[_FINGERPRINT]


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a run's folder, oldest first."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    complete = {path: int(step[1]) for path, step in steps.items() if step and (path / REST).is_file()}
    return sorted(complete, key=complete.__getitem__)


def find_checkpoint(name: str, folder: Path) -> Path | None:
    """Return the checkpoint of --resume_from_checkpoint; None, with a warning, if ``latest`` matches none.

    Args:
        name: ``latest``, a checkpoint's path or name, or the folder of a run, for its latest.
        folder: the folder of this run.

    Raises:
        AdapterFileError: the named checkpoint does not exist.
    """
    matches = checkpoints(folder) if name == "latest" else []
    for path in (Path(name), folder / name):
        matches = matches or ([path] if (path / REST).is_file() else checkpoints(path))
    if matches:
        return matches[-1]
    if name == "latest":
        logger.warning("There is no checkpoint in %s yet: starting a new run.", folder)
        return None
    raise AdapterFileError(
        f"There is no checkpoint {name}: give the name of one to --resume_from_checkpoint, or latest for the newest in "
        f"{folder}."
    )


def prune_checkpoints(folder: Path, fingerprint: Mapping[str, Any], limit: int | None, newest: Path) -> None:
    """Remove checkpoints of other runs; keep ``limit`` of this run: the newest, and those of the latest steps."""
    same_run: list[Path] = []
    for path in checkpoints(folder):
        try:
            is_same = _is_same_run(read_progress(path)[1], fingerprint)
        except AdapterFileError:
            continue  # damaged, but perhaps of use to somebody
        if is_same:
            same_run.append(path)
        else:
            remove_folder(path)
    same_run.sort(key=newest.__eq__)  # a resumed run may save an earlier step than existing checkpoints have
    for path in same_run[:-limit] if limit else ():
        remove_folder(path)


def _is_same_run(saved: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> bool:
    """Compare two fingerprints, of which one may be of an earlier version."""
    parts = fingerprint.keys() - {"settings"}
    is_same_input = all(saved.get(part) == fingerprint[part] for part in parts)
    return is_same_input and not changed_settings(saved.get("settings", {}), fingerprint.get("settings", {}))
