"""The state of a run that changes with its steps; a run resumed from it equals an uninterrupted run."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hra_diffusion.errors import AdapterFileError, DivergedError
from hra_diffusion.text import shorten
from hra_diffusion.training.data.batches import Batch
from hra_diffusion.training.loop.ema import EMA
from hra_diffusion.training.loop.rotation import RotationAngles
from hra_diffusion.training.loop.steps import Measured, StepRecord, train
from hra_diffusion.training.loop.validation_loss import ValidationLoss

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Trainer:
    """Weights, optimizer, schedule and EMA of a run, between two steps."""

    accelerator: Accelerator
    """Has prepared ``loss`` and ``optimizer``."""
    loss: nn.Module
    """Maps a batch's inputs to one loss per example; contains all trained weights."""
    weights: dict[str, nn.Parameter]
    """The trained weights, by name: see :func:`trained_weights`."""
    optimizer: Any
    lr_scheduler: LRScheduler
    batch_at: Callable[[int], Batch]
    """The batch of an index: see :func:`hra_diffusion.training.loop.steps.train`."""
    max_grad_norm: float
    ema: EMA | None = None
    """Average of the weights, to save and generate with, if the run has one."""
    angles: RotationAngles | None = None
    """Rotation angles to record after each step."""
    validation_loss: ValidationLoss | None = None
    """Loss on held-out images, to record after some steps."""
    global_step: int = 0
    """Number of optimizer steps done."""
    last_record: StepRecord | None = None
    """The record of the last of these steps, if this trainer took it."""

    def steps(self, total: int) -> Iterator[StepRecord]:
        """Train until ``total`` steps are done."""
        records = train(
            self.accelerator,
            self.loss,
            self.optimizer,
            self.lr_scheduler,
            self.batch_at,
            start=self.global_step,
            steps=total,
            max_grad_norm=self.max_grad_norm,
            after_step=self._after_step,
        )
        for record in records:
            self.global_step, self.last_record = record.step, record
            yield record

    def _after_step(self, step: int) -> Measured:
        """Average the weights after a step, and measure them; does not wait for the device."""
        if self.ema:
            self.ema.update(self.weights, step)
        measured: dict[str, tuple[Sequence[str], Tensor]] = {}
        if self.angles:
            measured["angles"] = (self.angles.names, self.angles.degrees())
        if self.validation_loss and step % self.validation_loss.every == 0:
            with self.inference_weights():
                value = self.validation_loss.mean_loss(self.loss, torch.device(self.accelerator.device))
            measured["validation_loss"] = ((), value)
        return measured

    @torch.no_grad()
    def copy_inference_weights(self) -> None:
        """Replace the trained weights by those to save and generate with. Training cannot continue afterwards.

        These are the EMA, if there is one, and the averaged weights of schedule-free optimizers.
        """
        self.optimizer.eval()
        if self.ema:
            self.ema.copy_to(self.weights)

    @contextmanager
    def inference_weights(self) -> Iterator[None]:
        """Use the weights to save and generate with in a ``with`` block; then restore the trained ones bit for bit."""
        stored = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.copy_inference_weights()
        try:
            yield
        finally:
            self.optimizer.train()
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(stored[name])

    def check_finite(self) -> None:
        """Check the numbers of the last step, the trained weights and their average.

        Raises:
            DivergedError: a number or weight is not finite.
        """
        if self.last_record:
            self.last_record.read()
        averages = {f"the average of {name}": weight for name, weight in (self.ema.weights if self.ema else {}).items()}
        weights = {**self.weights, **averages}
        finite = torch.stack([weight.isfinite().all() for weight in weights.values()]).tolist()
        if broken := [name for name, is_finite in zip(weights, finite, strict=True) if not is_finite]:
            raise DivergedError(f"After step {self.global_step}, weights are not finite: {shorten(broken)}.")

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the next steps depend on; batches are functions of their index."""
        parts = {name: part.state_dict() for name, part in self._stateful_parts().items()}
        weights = {name: weight.detach().clone() for name, weight in self.weights.items()}  # not the inference weights
        return {"step": self.global_step, "weights": weights, **parts}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the result of :meth:`state_dict` of a run with the same settings.

        Raises:
            AdapterFileError: the state has other weights.
        """
        saved = state["weights"]
        if _shapes(self.weights) != _shapes(saved):
            different = sorted({name for name, _ in _shapes(self.weights).items() ^ _shapes(saved).items()})
            raise AdapterFileError(f"The checkpoint trains other weights than this run: {', '.join(different[:4])}, …")
        for name, weight in self.weights.items():
            weight.copy_(saved[name])
        for name, part in self._stateful_parts().items():
            part.load_state_dict(state[name])
        self._update_learning_rates()
        self.global_step = state["step"]

    def _update_learning_rates(self) -> None:
        """Set the next step's rates by this run's schedule: the saved run may have had another number of steps."""
        schedule = self.lr_scheduler
        assert isinstance(schedule, LambdaLR)  # as diffusers' schedules are
        rates = [
            rate * factor(schedule.last_epoch)
            for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        if rates != [group["lr"] for group in self.optimizer.param_groups]:
            logger.warning(
                "The learning rate depends on --max_train_steps, which has changed: the steps so far had other rates "
                "than in a run with the new number of steps from the start."
            )
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _stateful_parts(self) -> dict[str, Any]:
        parts = {
            "optimizer": self.optimizer,
            "lr_scheduler": self.lr_scheduler,
            "scaler": self.accelerator.scaler,
            "average": self.ema,  # the key in checkpoints
        }
        return {name: part for name, part in parts.items() if part is not None}


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return a model's trained weights, by their names before accelerate wraps the model."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def trained_count(model: nn.Module) -> int:
    """Return the number of trained parameters of a model."""
    return sum(weight.numel() for weight in trained_weights(model).values())


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}
