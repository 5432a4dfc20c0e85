"""Which models are on the device: those that a phase of a run calls, only while it calls them.

Encoding needs the autoencoder, then one part of the text encoders after another; training needs the denoiser, and the
text encoders that train; generating needs all of them, one after another. On the CPU nothing moves.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils.memory import clear_device_cache
from torch import nn

from hra_diffusion.pipelines.bases import move_or_offload
from hra_diffusion.pipelines.components import models
from hra_diffusion.pipelines.protocol import Pipeline


def other_models(pipe: Pipeline, trained: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the models of a pipeline outside the trained modules: training steps do not need them."""
    needed = {module for model in trained for module in model.modules()}
    return [model for model in models(pipe).values() if model not in needed]


def move(models: Iterable[nn.Module], device: torch.device | str) -> None:
    """Move models to a device."""
    for model in models:
        model.to(device)


@contextmanager
def on_device(models: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
    """Move models to a device for a ``with`` block, and back to the CPU afterwards."""
    move(models, device)
    try:
        yield
    finally:
        move(models, "cpu")
        if device.type != "cpu":
            clear_device_cache()


@contextmanager
def ready_to_generate(pipe: Pipeline, accelerator: Accelerator, trained: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Have a pipeline ready to generate images within a ``with`` block; then only trained modules are on the device.

    Args:
        pipe: the pipeline.
        accelerator: the devices. In a single process the models take turns on the device; with several processes the
            trained modules cannot move, and all models are on it.
        trained: the modules that are on the device before and after.
    """
    device = accelerator.device
    if not _takes_turns(accelerator):
        with on_device(other_models(pipe, trained), device):
            yield
        return
    pipe.enable_model_cpu_offload(device=device)
    try:
        yield
    finally:
        pipe.remove_all_hooks()
        pipe.to("cpu", silence_dtype_warnings=True)
        clear_device_cache()
        move(trained, device)


def finish_training(pipe: Pipeline, accelerator: Accelerator, trained: Sequence[nn.Module]) -> None:
    """Leave a pipeline ready to generate images, once nothing trains."""
    if _takes_turns(accelerator):
        move_or_offload(pipe, accelerator.device, "model")
    else:
        move(other_models(pipe, trained), accelerator.device)


def _takes_turns(accelerator: Accelerator) -> bool:
    """Return whether models may leave the device while another is called."""
    return accelerator.device.type != "cpu" and accelerator.distributed_type == DistributedType.NO
