"""The training loop: a generator of step records, independent of screens, files and subjects.

The caller decides how to use a record (a progress bar, a log line, a validation) and when to stop.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hra_diffusion.errors import DivergedError
from hra_diffusion.training.devices.sharding import average_gradients

if TYPE_CHECKING:  # it imports diffusers, which readers of step records do not need
    from hra_diffusion.training.data.batches import Batch


_SKIPPED_STEPS = 20
"""Steps in a row that fp16's scaler may skip: it starts at 2¹⁶ and halves its scale each time."""


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """Measurements of one optimizer step."""

    step: int
    """Number of steps done, including this one."""
    loss: float
    """Weighted sum of the sources' losses, plus the penalty."""
    losses: dict[str, float]
    """Mean loss of each source."""
    penalty: float = 0.0
    """Orthogonality penalty, times its weight λ."""
    gradient_norm: float
    """Norm of the gradient before clipping."""
    learning_rates: dict[str, float]
    """Learning rate of each component: in radians for reflections, as given for other weights."""


def train(
    accelerator: Accelerator,
    loss_module: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    batch_at: "Callable[[int], Batch]",
    *,
    steps: int,
    max_grad_norm: float,
    start: int = 0,
) -> Iterator[StepRecord]:
    """Train up to a number of optimizer steps of ``accelerator.gradient_accumulation_steps`` batches each.

    Args:
        accelerator: has prepared ``loss_module`` and ``optimizer``.
        loss_module: maps a batch's inputs to one loss per example, and a penalty to add to their mean.
        optimizer: over the trainable parameters of ``loss_module``.
        lr_scheduler: stepped once per optimizer step.
        batch_at: returns the batch of an index, counted over all accumulation steps.
        steps: number of optimizer steps of the run.
        max_grad_norm: gradients are clipped to this norm.
        start: number of steps done already.

    Raises:
        DivergedError: the loss or the gradient's norm is not finite. With fp16, up to 20 such steps in a row
            are allowed: the scaler skips them, and lowers its scale.
    """
    trainable = [parameter for parameter in loss_module.parameters() if parameter.requires_grad]
    accumulation = accelerator.gradient_accumulation_steps
    skipped = 0
    for step in range(start, steps):
        losses: dict[str, float] = {}
        penalties = 0.0
        norm: Any = nan
        for index in range(step * accumulation, (step + 1) * accumulation):
            batch = batch_at(index)
            with accelerator.accumulate(loss_module):
                inputs = {name: tensor.to(accelerator.device) for name, tensor in batch.inputs.items()}
                per_example, penalty = loss_module(**inputs)
                means = _means(per_example, batch)
                accelerator.backward(penalty + sum(batch.weights[name] * mean for name, mean in means.items()))
                if accelerator.sync_gradients:
                    average_gradients(accelerator, trainable)
                    norm = accelerator.clip_grad_norm_(trainable, max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            penalties += penalty.item() / accumulation
            for name, mean in means.items():
                reduced = cast(Tensor, accelerator.reduce(mean.detach(), "mean"))
                losses[name] = losses.get(name, 0.0) + reduced.item() / accumulation
        rates = {  # d: Prodigy's estimate of its rate
            group["component"]: group["lr"] * group.get("d", 1.0) / group["lr_per_radian"]
            for group in optimizer.param_groups
        }
        lr_scheduler.step()
        record = StepRecord(
            step=step + 1,
            loss=penalties + sum(batch.weights[name] * loss for name, loss in losses.items()),
            losses=losses,
            penalty=penalties,
            gradient_norm=float(norm),
            learning_rates=rates,
        )
        skipped = skipped + 1 if accelerator.optimizer_step_was_skipped else 0
        if not 0 < skipped <= _SKIPPED_STEPS:
            _check_finite(record)
        yield record


def _check_finite(record: StepRecord) -> None:
    for name, value in (("loss", record.loss), ("norm of the gradient", record.gradient_norm)):
        if not isfinite(value):
            rates = ", ".join(f"{rate:.3g} of {component}" for component, rate in record.learning_rates.items())
            raise DivergedError(f"The {name} of step {record.step} is {value}, at the learning rates {rates}.")


def _means(per_example: Tensor, batch: "Batch") -> dict[str, Tensor]:
    return {name: per_example[rows].mean() for name, rows in batch.parts.items()}
