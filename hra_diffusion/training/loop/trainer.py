"""What changes while a run goes on, and nothing else: saved and loaded, the run goes on as if it had never stopped."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.training.data.batches import Batch
from hra_diffusion.training.loop.ema import EMA
from hra_diffusion.training.loop.steps import StepRecord, train

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Trainer:
    """A run between two of its steps."""

    accelerator: Accelerator
    """Has prepared ``loss`` and ``optimizer``."""
    loss: nn.Module
    """Maps a batch's inputs to one loss an example; holds everything that trains."""
    weights: dict[str, nn.Parameter]
    """What trains, by name: see :func:`trained_weights`."""
    optimizer: Any
    lr_scheduler: LRScheduler
    batch_at: Callable[[int], Batch]
    """The batch of an index: see :func:`hra_diffusion.training.loop.steps.train`."""
    max_grad_norm: float
    average: EMA | None = None
    """Of the weights, if it is what is to be saved and shown."""
    done: int = 0
    """Steps done."""

    def steps(self, total: int) -> Iterator[StepRecord]:
        """Train until ``total`` steps are done."""
        records = train(
            self.accelerator,
            self.loss,
            self.optimizer,
            self.lr_scheduler,
            self.batch_at,
            start=self.done,
            steps=total,
            max_grad_norm=self.max_grad_norm,
        )
        for record in records:
            self.done = record.step
            if self.average:
                self.average.update(self.weights, self.done)
            yield record

    @torch.no_grad()
    def show(self) -> None:
        """Let the weights be those that are saved and drawn: their average, if there is one; no more steps after that.

        Schedule-free optimizers, too, train other weights than those they recommend.
        """
        self.optimizer.eval()
        for name, average in self.average.weights.items() if self.average else ():
            self.weights[name].copy_(average)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the weights, see :meth:`show`, within a ``with`` block; then they are, to the bit, as before."""
        kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.show()
        try:
            yield
        finally:
            self.optimizer.train()
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(kept[name])

    def state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, but for the batches, which are functions of their number."""
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        weights = {name: weight.detach().clone() for name, weight in self.weights.items()}  # not those shown later
        return {"step": self.done, "weights": weights, **parts}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` returned, of a run with the same settings.

        Raises:
            AdapterFileError: it has other weights.
        """
        own, found = self.weights, state["weights"]
        if _shapes(own) != _shapes(found):
            odd = sorted({name for name, _ in _shapes(own).items() ^ _shapes(found).items()})
            raise AdapterFileError(f"The checkpoint trains other weights than this run: {', '.join(odd[:4])}, …")
        for name, weight in own.items():
            weight.copy_(found[name])
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self._set_rates()
        self.done = state["step"]

    def _set_rates(self) -> None:
        """Let the next step have the rate of this run's schedule: the saved one's may have had another length."""
        schedule = self.lr_scheduler
        assert isinstance(schedule, LambdaLR)  # diffusers' schedules all are
        rates = [
            rate * factor(schedule.last_epoch)
            for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        if rates != [group["lr"] for group in self.optimizer.param_groups]:
            logger.warning(
                "The learning rate depends on --max_train_steps, which has changed: the steps before this one were "
                "taken at other rates than in a run that has its present length from the start."
            )
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _parts(self) -> dict[str, Any]:
        parts = {
            "optimizer": self.optimizer,
            "lr_scheduler": self.lr_scheduler,
            "scaler": self.accelerator.scaler,
            "average": self.average,
        }
        return {name: part for name, part in parts.items() if part is not None}


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what trains in a model, by the names that it has before accelerate wraps it."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def trained_count(model: nn.Module) -> int:
    """Return how many numbers train in a model."""
    return sum(weight.numel() for weight in trained_weights(model).values())


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights.items()}
