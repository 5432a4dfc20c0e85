"""FSDP: each device keeps a shard of the frozen weights, and gathers those of a block when it computes the block.

Trained weights are not sharded, since a reflection's column has to be whole to be retracted to its sphere. Each device
holds all of them, a few megabytes; gradients are averaged, so that the steps equal those without sharding.
Zhao et al., PyTorch FSDP, arXiv 2304.11277; here in its second version, `torch.distributed.fsdp.fully_shard`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from hra_diffusion.errors import ConfigError


def set_up_sharding(accelerator: Accelerator, model: nn.Module, blocks: Iterable[str]) -> None:
    """Configure FSDP before accelerate prepares a model; without FSDP, do nothing.

    Args:
        accelerator: the devices.
        model: the model, before ``accelerator.prepare``.
        blocks: class names of the modules to gather as a whole, as diffusers' models list them.

    Raises:
        ConfigError: accelerate is configured for FSDP version 1, which cannot exclude modules from sharding.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    assert plugin
    if plugin.fsdp_version != 2:
        raise ConfigError(
            "accelerate is set up for the first version of FSDP, which would shard the reflections' columns: launch "
            "with --config_file configs/accelerate/fsdp.yaml, or set fsdp_version to 2."
        )
    names = {type(module).__name__ for module in model.modules()}
    plugin.transformer_cls_names_to_wrap = sorted(names.intersection(blocks))
    plugin.ignored_modules = [
        module for module in model.modules() if any(weight.requires_grad for weight in module.parameters(recurse=False))
    ]
    plugin.cpu_ram_efficient_loading = False  # every process has loaded the model
    plugin.mixed_precision_policy = None  # the model has its precision already


def average_gradients(accelerator: Accelerator, weights: Iterable[nn.Parameter]) -> None:
    """Average the gradients of unsharded weights over devices under FSDP; otherwise accelerate has averaged them."""
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])  # one exchange between devices for all
    averages = cast(Tensor, accelerator.reduce(together, "mean")).split([gradient.numel() for gradient in gradients])
    shaped = [average.view_as(gradient) for average, gradient in zip(averages, gradients, strict=True)]
    torch._foreach_copy_(gradients, shaped)


def unshard(model: nn.Module) -> None:
    """Gather the whole model on each device for good, to generate on one of them. All processes must call this."""
    for module in sharded_modules(model):
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather the whole model on each device for a ``with`` block. All processes must enter the block."""
    unshard(model)
    try:
        yield
    finally:
        for module in sharded_modules(model):
            module.set_reshard_after_forward(module is not model, recurse=False)
            module.reshard()


def sharded_modules(model: nn.Module) -> list[FSDPModule]:
    """Return the modules that FSDP shards, each with the weights of its unsharded submodules."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
