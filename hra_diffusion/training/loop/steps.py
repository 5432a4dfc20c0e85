"""The training loop: a generator of step records, independent of screens, files and subjects.

The caller decides how to use a record (a progress bar, a log line, a validation) and when to stop.

A step does not wait for a GPU: its numbers are copied to main memory while the next step is prepared and launched, and
read after that. So they are one step late, unless somebody asks for them earlier; then the GPU is idle for a while.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hra_diffusion.errors import DivergedError
from hra_diffusion.training.devices.sharding import average_gradients
from hra_diffusion.training.loop.copies import COMPUTES_AHEAD, CopiedNumbers, to_device

if TYPE_CHECKING:  # it imports diffusers, which readers of step records do not need
    from hra_diffusion.training.data.batches import Batch


Measured = Mapping[str, tuple[Sequence[str], Tensor]]
"""Fields of a step record by name, each with its keys and as many numbers on the device; () for a single number."""

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
    penalty: float = field(default_factory=float)
    """Orthogonality penalty, times its weight λ."""
    gradient_norm: float
    """Norm of the gradient before clipping."""
    learning_rates: dict[str, float]
    """Learning rate of each component: in radians for reflections, as given for other weights."""
    angles: dict[str, float] = field(default_factory=dict[str, float])
    """Mean rotation angle in degrees of each adapted component, and of each of its groups of layers."""
    validation_loss: float | None = field(default_factory=type(None))
    """Loss on the held-out images; None for a step without validation."""

    @property
    def component_angles(self) -> dict[str, float]:
        """The mean rotation angle of each adapted component, without those of its groups of layers."""
        return {name: angle for name, angle in self.angles.items() if "." not in name}

    @classmethod
    def late(cls, read: Callable[[], dict[str, Any]], **known: Any) -> "StepRecord":
        """Return a record whose numbers are not known yet.

        Args:
            read: returns the fields other than those of ``known``; called once, when one of them is used.
            known: fields that are known.
        """
        record = object.__new__(cls)
        vars(record).update(known, _read=read)
        return record

    @property
    def is_read(self) -> bool:
        """Whether all numbers are known."""
        return "_read" not in vars(self)

    def read(self) -> "StepRecord":
        """Wait for the step's numbers.

        Raises:
            DivergedError: a number is not finite.
        """
        if not self.is_read:
            vars(self).update(vars(self)["_read"]())
            del vars(self)["_read"]
        return self

    def __getattr__(self, name: str) -> Any:
        """Read the numbers for the first of them that is used."""
        if name.startswith("_") or self.is_read:
            raise AttributeError(f"A step record has no {name}.", name=name, obj=self)
        self.read()
        return getattr(self, name)


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
    after_step: Callable[[int], Measured] | None = None,
) -> Iterator[StepRecord]:
    """Train up to a number of optimizer steps of ``accelerator.gradient_accumulation_steps`` batches each.

    Args:
        accelerator: has prepared ``loss_module`` and ``optimizer``.
        loss_module: maps a batch's inputs to one loss per example, and a penalty to add to their mean, or None.
        optimizer: over the trainable parameters of ``loss_module``.
        lr_scheduler: stepped once per optimizer step.
        batch_at: returns the batch of an index, counted over all accumulation steps.
        steps: number of optimizer steps of the run.
        max_grad_norm: gradients are clipped to this norm.
        start: number of steps done already.
        after_step: called with the number of steps done; measures the model without waiting for the device.

    Raises:
        DivergedError: the loss or the gradient's norm is not finite. With fp16, up to 20 such steps in a row
            are allowed: the scaler skips them, and lowers its scale.
    """
    trainable = [parameter for parameter in loss_module.parameters() if parameter.requires_grad]
    device, accumulation = torch.device(accelerator.device), accelerator.gradient_accumulation_steps
    check = _FiniteCheck(has_scaler=accelerator.scaler is not None)
    previous: StepRecord | None = None
    for step in range(start, steps):
        means: list[Tensor] = []
        penalties: list[Tensor] = []
        norm: Any = nan
        for index in range(step * accumulation, (step + 1) * accumulation):
            batch = batch_at(index)
            with accelerator.accumulate(loss_module):
                per_example, penalty = loss_module(**to_device(batch.inputs, device))
                by_source = batch.mean_losses(per_example)
                loss = batch.weighted_sum(by_source)
                accelerator.backward(loss if penalty is None else penalty + loss)
                if accelerator.sync_gradients:
                    average_gradients(accelerator, trainable)
                    norm = accelerator.clip_grad_norm_(trainable, max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            means += [mean.detach() for mean in by_source.values()]
            penalties += [] if penalty is None else [penalty]
        rates = {  # d: Prodigy's estimate of its rate
            group["component"]: group["lr"] * group.get("d", 1.0) / group["lr_per_radian"]
            for group in optimizer.param_groups
        }
        lr_scheduler.step()
        reduced = cast(Tensor, accelerator.reduce(torch.stack(means), "mean"))
        weights = {name: batch.weights[name] for name in batch.parts}
        measured = after_step(step + 1) if after_step else {}
        parts = {"norm": torch.as_tensor(norm, device=device), "means": reduced}
        parts |= {"penalties": torch.stack(penalties)} if penalties else {}
        numbers = CopiedNumbers({**parts, **{name: values for name, (_, values) in measured.items()}})
        keys = {name: names for name, (names, _) in measured.items()}
        record = StepRecord.late(
            partial(_read, numbers, weights, accumulation, keys, partial(check, step + 1, rates)),
            step=step + 1,
            learning_rates=rates,
        )
        if previous:
            previous.read()
        if device.type not in COMPUTES_AHEAD or step + 1 == steps:
            record.read()
        previous = record
        yield record


def _read(
    copied: CopiedNumbers,
    weights: Mapping[str, float],
    accumulation: int,
    keys: Mapping[str, Sequence[str]],
    check: Callable[[float, float], None],
) -> dict[str, Any]:
    """Return a step's numbers by the names of a record's fields; ``keys`` are those of the measured fields."""
    numbers = copied.read()
    (norm,) = numbers["norm"]
    losses: dict[str, float] = {}
    for batch in range(accumulation):
        for name, mean in zip(weights, numbers["means"][batch * len(weights) :], strict=False):
            losses[name] = losses.get(name, 0.0) + mean / accumulation
    penalty = sum((number / accumulation for number in numbers.get("penalties", ())), 0.0)
    loss = penalty + sum(weights[name] * loss for name, loss in losses.items())
    check(loss, norm)
    measured = {
        name: dict(zip(names, numbers[name], strict=True)) if names else numbers[name][0]
        for name, names in keys.items()
    }
    unmeasured = {"angles": {}, "validation_loss": None}
    return {"loss": loss, "losses": losses, "penalty": penalty, "gradient_norm": norm, **unmeasured, **measured}


class _FiniteCheck:
    """A check of the numbers of each step, in the order of the steps."""

    def __init__(self, has_scaler: bool) -> None:
        self._has_scaler = has_scaler
        self._skipped = 0

    def __call__(self, step: int, learning_rates: Mapping[str, float], loss: float, norm: float) -> None:
        """Raise a DivergedError for a number that is not finite, unless fp16's scaler skipped the step."""
        self._skipped = self._skipped + 1 if self._has_scaler and not isfinite(norm) else 0
        if 0 < self._skipped <= _SKIPPED_STEPS:
            return
        for name, value in (("loss", loss), ("norm of the gradient", norm)):
            if not isfinite(value):
                rates = ", ".join(f"{rate:.3g} of {component}" for component, rate in learning_rates.items())
                raise DivergedError(f"The {name} of step {step} is {value}, at the learning rates {rates}.")
