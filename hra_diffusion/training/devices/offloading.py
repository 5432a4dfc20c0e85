"""Offloading: models without a part in training steps wait on the CPU once images and prompts are encoded."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from hra_diffusion.pipelines.components import models
from hra_diffusion.pipelines.protocol import Pipeline


def offloadable_models(pipe: Pipeline, loss: nn.Module) -> list[nn.Module]:
    """Return the models of a pipeline that its training loss does not need."""
    needed = set(loss.modules())
    return [model for model in models(pipe).values() if model not in needed]


def move(models: Iterable[nn.Module], device: torch.device | str) -> None:
    """Move models to a device."""
    for model in models:
        model.to(device)


@contextmanager
def on_device(models: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Move models to a device for a ``with`` block, and back to the CPU afterwards."""
    move(models, device)
    try:
        yield
    finally:
        move(models, "cpu")
