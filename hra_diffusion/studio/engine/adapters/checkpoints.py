"""Adapters in the checkpoints of training jobs by name, ``tiger/checkpoint-100``."""

from dataclasses import replace
from pathlib import Path

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.adapters.entry import Entry, check_name, read_entry
from hra_diffusion.training.outputs.checkpoint import checkpoints

CHECKPOINT = "/checkpoint-"
"""Between the name of the job and the number of steps."""


class Checkpoints:
    """The checkpoints of all training jobs.

    Args:
        runs: folder of the jobs; None without any.
    """

    def __init__(self, runs: Path | None) -> None:
        self._runs = runs

    def steps(self, job: str) -> list[str]:
        """Return the steps of a job's checkpoints; empty without such a job."""
        folders = checkpoints(self._runs / check_name(job)) if self._runs else []
        return [folder.name.rpartition("-")[2] for folder in folders]

    def entry(self, name: str) -> Entry:
        """Return the adapter in a checkpoint.

        Raises:
            AdapterFileError: the adapter is damaged.
            ConfigError: the job has no such checkpoint.
        """
        job, _, step = name.rpartition(CHECKPOINT)
        steps = self.steps(job)
        if not self._runs or step not in steps:
            known = ", ".join(steps) or "none"
            raise ConfigError(f"The training job {job!r} has no checkpoint {step[:80]!r}; known are: {known}.")
        folder = self._runs / check_name(job) / f"checkpoint-{step}" / "adapter"
        return replace(read_entry(folder, built_in=True), name=name)
