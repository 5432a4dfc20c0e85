"""The start of a run's adapter from the gradient of its first batches: --init_weights gradient."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from hra_diffusion.adapter.gradient_start import initialize_from_gradient
from hra_diffusion.model import HRAModel
from hra_diffusion.training.loop.copies import to_device
from hra_diffusion.training.loop.trainer import Trainer
from hra_diffusion.training.rng import stream

BATCHES = 8
"""Batches of a process; each is computed twice."""

_FP16_SCALE = 1024.0
"""Scale of the loss in float16, whose smallest numbers would be zero."""


def start_from_gradient(trainer: Trainer, models: Sequence[HRAModel], seed: int) -> None:
    """Initialize the pairs of new adapters from the loss of the run's first batches, before the first step.

    The result depends on the settings alone, and checkpoints have it: a resumed run does not repeat it.

    Raises:
        DivergedError: a gradient is not finite.
    """
    accelerator = trainer.accelerator
    device = torch.device(accelerator.device)
    scale = _FP16_SCALE if accelerator.mixed_precision == "fp16" else 1.0

    def backward(index: int) -> None:
        batch = trainer.batch_at(index)
        losses, _ = trainer.loss(**to_device(batch.inputs, device))
        (scale * batch.weighted_sum(batch.mean_losses(losses))).backward()
        trainer.optimizer.zero_grad()

    initialize_from_gradient(
        models,
        backward,
        batches=BATCHES,
        generator=stream(seed, "basis of the gradient"),
        # A layer without a gradient has its zeros on the CPU, where NCCL does not reduce.
        reduce=lambda product: cast(Tensor, accelerator.reduce(product.to(device), "sum")),
    )
    if trainer.ema:
        trainer.ema.load_state_dict(trainer.weights)
