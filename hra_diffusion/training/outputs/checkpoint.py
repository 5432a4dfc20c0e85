"""Checkpoints: everything a run needs to go on as if it had never stopped, whole or not there at all.

    checkpoint-100/
    ├── adapter/                     as ``hra-diffusion generate --adapter`` takes it
    ├── log.jsonl                    the log up to here
    ├── training_state.safetensors   tensors: weights, optimizer, average
    └── training_state.json          the rest, and what run this is a checkpoint of

No random state is among it: what step 300 draws depends on the seed and on 300 alone, see
:mod:`hra_diffusion.training.rng`.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save

from hra_diffusion.errors import AdapterFileError, OutputError
from hra_diffusion.formats.files import (
    read_json,
    read_tensors,
    remove_folder,
    replacing,
    write_together,
)
from hra_diffusion.formats.nested import flatten, restore

logger = logging.getLogger(__name__)

TENSORS, REST, LOG = "training_state.safetensors", "training_state.json", "log.jsonl"


class Saveable(Protocol):
    """An adapted component of a pipeline."""

    def save_pretrained(self, save_directory: Any) -> None:
        """Write the adapter into a folder."""
        ...


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run after some step."""

    step: int
    """Steps done."""
    identity: Mapping[str, Any]
    """What makes it this run and no other, as JSON has it."""
    state: Any
    """What changes during a run: nested dicts with tensors."""
    log: bytes
    """What log.jsonl holds."""


def save_adapter(components: Mapping[str, Saveable], folder: Path) -> None:
    """Save adapted components, ``<folder>/<name>/`` each, all of them or none; a folder that was there is replaced.

    Raises:
        OutputError: the folder cannot be written; what was there before is intact.
    """
    with replacing(folder) as new:
        for name, component in components.items():
            component.save_pretrained(new / name)


def save_checkpoint(path: Path, checkpoint: Checkpoint, components: Mapping[str, Saveable]) -> None:
    """Write ``checkpoint-<step>`` in a run's folder.

    Raises:
        OutputError: it cannot be written; earlier ones are intact.
    """
    described, tensors = flatten(checkpoint.state)
    rest = {"step": checkpoint.step, "identity": checkpoint.identity, "state": described}
    contents = {TENSORS: save(tensors), REST: json.dumps(rest).encode(), LOG: checkpoint.log}
    try:
        with replacing(path) as new:
            save_adapter(components, new / "adapter")
            write_together({new / name: content for name, content in contents.items()})
    except OutputError as error:
        needed = sum(map(len, contents.values())) / 1e6
        earlier = [old.name for old in checkpoints(path.parent) if old != path]
        kept = f"Go on from {earlier[-1]} with --resume_from_checkpoint latest" if earlier else "There was none before"
        room = f"; of {', '.join(earlier[:-1])} none is needed for that" if earlier[1:] else ""
        raise OutputError(f"{error} A checkpoint takes {needed:.1f} MB and its adapter. {kept}{room}.") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        AdapterFileError: it is none, or damaged.
    """
    rest = read_json(path / REST)
    step, identity = read_progress(path)
    try:
        state = restore(rest["state"], read_tensors(path / TENSORS))
        return Checkpoint(step=step, identity=identity, state=state, log=(path / LOG).read_bytes())
    except (KeyError, OSError) as error:
        raise AdapterFileError(f"The checkpoint {path} is not complete ({error}): take an earlier one.") from error


def read_progress(path: Path) -> tuple[int, Mapping[str, Any]]:
    """Read from a checkpoint how many steps are done, and the identity of its run.

    Raises:
        AdapterFileError: it is none, or damaged.
    """
    rest = read_json(path / REST)
    if not (isinstance(rest.get("step"), int) and isinstance(rest.get("identity"), dict)):
        raise AdapterFileError(f"The checkpoint {path} is damaged: {REST} does not say what run it is of.")
    return rest["step"], rest["identity"]


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a run's folder, oldest first."""
    steps = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in folder.glob("checkpoint-*")}
    found = {path: int(step[1]) for path, step in steps.items() if step and (path / REST).is_file()}
    return sorted(found, key=found.__getitem__)


def find_checkpoint(wanted: str, folder: Path) -> Path | None:
    """Return the checkpoint that --resume_from_checkpoint means; where ``latest`` finds none, None and a warning.

    Args:
        wanted: ``latest``, a checkpoint's path or name, or the folder of a run, whose latest is meant.
        folder: the run's own.

    Raises:
        AdapterFileError: a checkpoint was named and is not there.
    """
    found = checkpoints(folder) if wanted == "latest" else []
    for place in (Path(wanted), folder / wanted):
        found = found or ([place] if (place / REST).is_file() else checkpoints(place))
    if found:
        return found[-1]
    if wanted == "latest":
        logger.warning("There is no checkpoint in %s yet: starting anew.", folder)
        return None
    raise AdapterFileError(
        f"There is no checkpoint {wanted}: name one for --resume_from_checkpoint, or write latest for the newest in "
        f"{folder}."
    )


def remove_superfluous(folder: Path, identity: Mapping[str, Any], limit: int | None, newest: Path) -> None:
    """Remove checkpoints of other runs; keep ``limit`` of this one: the newest, and those of the latest steps."""
    own: list[Path] = []
    for path in checkpoints(folder):
        try:
            of_this_run = read_progress(path)[1] == identity
        except AdapterFileError:
            continue  # damaged, and perhaps of use to somebody
        if of_this_run:
            own.append(path)
        else:
            remove_folder(path)
    own.sort(key=newest.__eq__)  # it may be of an earlier step than others, after going back
    for path in own[:-limit] if limit else ():
        remove_folder(path)
