"""Models that no step needs, once images and prompts are encoded, leave the device to those that steps do need."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hra_diffusion.pipelines.components import models


def offloadable_models(pipe: Any, loss: nn.Module) -> list[nn.Module]:
    """Return the models of a pipeline that its training loss does without."""
    needed = set(loss.modules())
    return [part for part in models(pipe).values() if part not in needed]


def move(models: Iterable[nn.Module], device: torch.device | str) -> None:
    """Move models to a device."""
    for model in models:
        model.to(device)


@contextmanager
def present(models: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Have models on a device within a ``with`` block, and then in main memory again."""
    move(models, device)
    try:
        yield
    finally:
        move(models, "cpu")
