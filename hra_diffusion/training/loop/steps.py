"""The training loop: a generator of step records. It knows no screen, no file and no subject.

Whoever iterates decides what happens with a record (a progress bar, a log line, a validation) and when to stop.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hra_diffusion.training.devices.sharding import average_gradients

if TYPE_CHECKING:  # that one imports diffusers, and this is read for the records, too
    from hra_diffusion.training.data.batches import Batch


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one optimizer step was like."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Weighted sum of the sources' losses, and the penalty."""
    losses: dict[str, float]
    """Mean loss of each source."""
    penalty: float = 0.0
    """Orthogonality penalty, times its weight λ."""
    gradient_norm: float
    """Before clipping."""
    learning_rates: dict[str, float]
    """By component, in radians; of what is no reflection, as it is."""


def train(
    accelerator: Accelerator,
    loss_of: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler,
    batch_at: "Callable[[int], Batch]",
    *,
    steps: int,
    max_grad_norm: float,
    start: int = 0,
) -> Iterator[StepRecord]:
    """Train up to a number of optimizer steps, ``accelerator.gradient_accumulation_steps`` batches each.

    Args:
        accelerator: has prepared ``loss_of`` and ``optimizer``.
        loss_of: maps a batch's inputs to one loss an example, and a penalty to be added to their mean.
        optimizer: over the trainable parameters of ``loss_of``.
        lr_scheduler: stepped once an optimizer step.
        batch_at: the batch of an index, counted over all accumulation steps.
        steps: how many optimizer steps the run has.
        max_grad_norm: longer gradients are shortened to it.
        start: how many of the steps are done already.
    """
    trainable = [parameter for parameter in loss_of.parameters() if parameter.requires_grad]
    accumulation = accelerator.gradient_accumulation_steps
    for step in range(start, steps):
        losses: dict[str, float] = {}
        penalties = 0.0
        for index in range(step * accumulation, (step + 1) * accumulation):
            batch = batch_at(index)
            with accelerator.accumulate(loss_of):
                inputs = {name: tensor.to(accelerator.device) for name, tensor in batch.inputs.items()}
                per_example, penalty = loss_of(**inputs)
                means = _means(per_example, batch)
                accelerator.backward(penalty + sum(batch.weights[name] * mean for name, mean in means.items()))
                if accelerator.sync_gradients:
                    average_gradients(accelerator, trainable)
                    norm = accelerator.clip_grad_norm_(trainable, max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            penalties += penalty.item() / accumulation
            for name, mean in means.items():
                losses[name] = losses.get(name, 0.0) + accelerator.reduce(mean.detach(), "mean").item() / accumulation
        rates = {
            group["component"]: group["lr"] * group.get("d", 1.0) / group["lr_per_radian"]  # d: Prodigy's own rate
            for group in optimizer.param_groups
        }
        lr_scheduler.step()
        yield StepRecord(
            step=step + 1,
            loss=penalties + sum(batch.weights[name] * loss for name, loss in losses.items()),
            losses=losses,
            penalty=penalties,
            gradient_norm=float(norm),
            learning_rates=rates,
        )


def _means(per_example: Tensor, batch: "Batch") -> dict[str, Tensor]:
    return {name: per_example[rows].mean() for name, rows in batch.parts.items()}
