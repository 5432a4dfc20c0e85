"""What a run leaves on the disk while it goes on: its log as numbers and as a curve, and checkpoints to go on from."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hra_diffusion.formats.files import remove_folder, tidy, write_file
from hra_diffusion.formats.run_folder import RESULTS
from hra_diffusion.training.outputs.checkpoint import (
    LOG,
    Checkpoint,
    Saveable,
    checkpoints,
    load_checkpoint,
    remove_superfluous,
    save_checkpoint,
)
from hra_diffusion.training.config import RunConfig
from hra_diffusion.training.outputs.log import Log, read_log
from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.outputs.loss_curve import loss_curve
from hra_diffusion.training.loop.trainer import Trainer

logger = logging.getLogger(__name__)

VALIDATION = "validation"


@dataclass(kw_only=True)
class RunRecorder:
    """A trainer whose steps are written down in a folder."""

    folder: Path
    trainer: Trainer
    components: Mapping[str, Saveable]
    """The adapted parts of the pipeline."""
    identity: Mapping[str, Any]
    """What makes it this run and no other."""
    config: RunConfig
    saved: Path | None = None
    """The last checkpoint that was saved or gone back to."""
    log: bytes = b""
    """Lines of the steps that were done when it was gone back to."""

    def go_back(self, path: Path) -> None:
        """Take over a checkpoint of this run.

        Raises:
            AdapterFileError: it is damaged.
        """
        checkpoint = load_checkpoint(path)
        self.trainer.load(checkpoint.state)
        self.log, self.saved = checkpoint.log, path

    def steps(self, total: int) -> Iterator[StepRecord]:
        """Train until ``total`` steps are done; each is in the log, and its checkpoint saved, when it is yielded."""
        if not self.trainer.accelerator.is_main_process:
            yield from self.trainer.steps(total)
            return
        tidy(self.folder)
        if not self.trainer.done and (old := checkpoints(self.folder)):
            logger.warning(
                "%s is of an earlier run, which --resume_from_checkpoint latest goes on with; this one starts anew, "
                "and its first checkpoint replaces those of other settings.",
                old[-1],
            )
        with Log(self.folder / LOG, self.log) as log:
            if self.trainer.done:  # a killed run may have saved its last checkpoint and got no further
                self._follow_up()
            for record in self.trainer.steps(total):
                log.write(record)
                if record.step % self.config.checkpointing_steps == 0 or record.step == total:
                    self.save()
                yield record

    def save(self) -> Path:
        """Save a checkpoint of the last step, unless there is one, and loss.png; returns the checkpoint's path.

        The main process alone writes.

        Raises:
            OutputError: it cannot be written; earlier ones are intact.
        """
        step = self.trainer.done
        path = self.folder / f"checkpoint-{step}"
        if path != self.saved and self.trainer.accelerator.is_main_process:
            log = (self.folder / LOG).read_bytes()
            checkpoint = Checkpoint(step=step, identity=self.identity, state=self.trainer.state(), log=log)
            with self.trainer.shown():
                save_checkpoint(path, checkpoint, self.components)
            self.saved = path
            self._follow_up()
        return path

    def _follow_up(self) -> None:
        """Do what belongs to a checkpoint: superfluous ones go, and loss.png shows the losses so far."""
        assert self.saved
        remove_superfluous(self.folder, self.identity, self.config.checkpoints_total_limit, newest=self.saved)
        write_file(self.folder / "loss.png", loss_curve(read_log(self.folder / LOG)).save)


def clear_results(folder: Path) -> None:
    """Take away what was shown and measured of the adapter before, where a run has left one."""
    for name in RESULTS if (folder / LOG).is_file() else ():
        (folder / name).unlink(missing_ok=True)


def clear_validation(folder: Path) -> None:
    """Take away what an earlier run has shown on its way, where there was one."""
    for step in (folder / VALIDATION).glob("step-*") if (folder / LOG).is_file() else ():
        if step.is_dir():
            remove_folder(step)
