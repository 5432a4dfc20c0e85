"""Files that a run writes during training: its log, its loss curve and its checkpoints."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hra_diffusion.errors import DivergedError, OutputError
from hra_diffusion.formats.files import remove_folder, tidy, write_file
from hra_diffusion.formats.run_folder import RESULTS
from hra_diffusion.training.config import RunConfig
from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.loop.trainer import Trainer
from hra_diffusion.training.outputs.checkpoint import (
    LOG,
    Checkpoint,
    Save,
    checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from hra_diffusion.training.outputs.log import Log, read_log
from hra_diffusion.training.outputs.loss_curve import loss_curve

logger = logging.getLogger(__name__)

VALIDATION = "validation"


@dataclass(kw_only=True)
class RunRecorder:
    """A trainer that records its steps in a folder."""

    folder: Path
    trainer: Trainer
    components: Mapping[str, Save]
    """The trained components to save, by name."""
    adapter_files: Mapping[str, bytes]
    """Further files of the adapter's folder, by name."""
    fingerprint: Mapping[str, Any]
    """See :func:`hra_diffusion.training.outputs.resuming.fingerprint`."""
    config: RunConfig
    saved: Path | None = None
    """The last checkpoint saved or resumed from."""
    log: bytes = b""
    """Log lines of the checkpoint resumed from."""
    _log: Log | None = None
    """The log of the steps in progress."""

    def resume(self, path: Path) -> None:
        """Load a checkpoint of this run.

        Raises:
            AdapterFileError: the checkpoint is damaged.
        """
        checkpoint = load_checkpoint(path)
        self.trainer.load_state_dict(checkpoint.state)
        self.log, self.saved = checkpoint.log, path

    def steps(self, total: int, report: Callable[[StepRecord], object] | None = None) -> Iterator[StepRecord]:
        """Train until ``total`` steps are done; save and log each step before it is yielded.

        A GPU's numbers are logged one step late, except those of a step that is saved.

        Args:
            total: number of steps of the run.
            report: called with each step's record once it is logged, in the main process.
        """
        if not self.trainer.accelerator.is_main_process:
            yield from self._finite_steps(total)
            return
        tidy(self.folder)
        if not self.trainer.global_step and (old := checkpoints(self.folder)):
            logger.warning(
                "%s is of an earlier run; --resume_from_checkpoint latest resumes that run. This run starts from the "
                "beginning, and its first checkpoint replaces those of other settings.",
                old[-1],
            )
        with Log(self.folder / LOG, self.log, report) as self._log:
            if self.trainer.global_step:  # a run may have been killed right after its last checkpoint
                self._prune_and_plot()
            for record in self._finite_steps(total):
                self._log.write(record)
                self.check_folder()
                if self._is_saved(record.step, total):
                    self.save()
                yield record

    def save(self) -> Path:
        """Save a checkpoint of the last step, unless it exists, and loss.png; return the checkpoint's path.

        Only the main process writes.

        Raises:
            DivergedError: a weight is not finite; nothing is written.
            OutputError: the checkpoint cannot be written; earlier ones are intact.
        """
        step = self.trainer.global_step
        path = self.folder / f"checkpoint-{step}"
        if path != self.saved and self.trainer.accelerator.is_main_process:
            self.check_finite()
            self.check_folder()
            if self._log:
                self._log.flush()
            log = (self.folder / LOG).read_bytes()
            checkpoint = Checkpoint(step=step, fingerprint=self.fingerprint, state=self.trainer.state_dict(), log=log)
            with self.trainer.inference_weights():
                save_checkpoint(path, checkpoint, self.components, self.adapter_files)
            self.saved = path
            self._prune_and_plot()
        return path

    def check_finite(self) -> None:
        """Check the numbers of the last step, the trained weights and their average.

        Raises:
            DivergedError: a number or weight is not finite.
        """
        with self._explained():
            self.trainer.check_finite()

    def check_folder(self) -> None:
        """Check that the run's folder exists.

        Raises:
            OutputError: it was removed or renamed.
        """
        if not (self.folder / LOG).is_file():
            raise OutputError(
                f"{self.folder} is gone after step {self.trainer.global_step}: it was removed or renamed during the "
                "run, which ends here. Resume from the renamed folder, or start anew."
            )

    def _finite_steps(self, total: int) -> Iterator[StepRecord]:
        """Train; every process reads the numbers of a saved step, so that all of them end after a diverged one."""
        with self._explained():
            for record in self.trainer.steps(total):
                yield record.read() if self._is_saved(record.step, total) else record

    def _is_saved(self, step: int, total: int) -> bool:
        return step % self.config.checkpointing_steps == 0 or step == total

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Add the last good checkpoint and the usual causes to an error of numbers that are not finite."""
        try:
            yield
        except DivergedError as error:
            good = f"the last good checkpoint is {self.saved}" if self.saved else "this run has no checkpoint yet"
            raise DivergedError(
                f"{error} Training ends, and this step is not saved; {good}. Usual causes: a learning rate that is too "
                "high (--learning_rate, --text_encoder_lr, --encoder_lr), fp16 (try --mixed_precision bf16)."
            ) from error

    def _prune_and_plot(self) -> None:
        """Remove superfluous checkpoints, and plot the losses so far in loss.png."""
        assert self.saved
        prune_checkpoints(self.folder, self.fingerprint, self.config.checkpoints_total_limit, newest=self.saved)
        write_file(self.folder / "loss.png", loss_curve(read_log(self.folder / LOG)).save)


def clear_results(folder: Path) -> None:
    """Remove images and measurements of a previous run's adapter; without a log there was no such run."""
    for name in RESULTS if (folder / LOG).is_file() else ():
        (folder / name).unlink(missing_ok=True)


def clear_validation(folder: Path) -> None:
    """Remove validation images of a previous run; without a log there was no such run."""
    for step in (folder / VALIDATION).glob("step-*") if (folder / LOG).is_file() else ():
        if step.is_dir():
            remove_folder(step)
