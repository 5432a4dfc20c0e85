"""FSDP: each device keeps a part of the frozen weights, and gathers those of a block when it comes to it.

What trains is left out of that, since the columns of a reflection have to stay whole to be kept on their sphere: every
device has all of it, a few megabytes, and gradients are averaged as they are without sharding: the steps are the same.
Zhao et al., PyTorch FSDP, arXiv 2304.11277; this is its second version, `torch.distributed.fsdp.fully_shard`.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from accelerate import Accelerator, DistributedType
from torch import nn
from torch.distributed.fsdp import FSDPModule

from hra_diffusion.errors import ConfigError


def set_up_sharding(accelerator: Accelerator, model: nn.Module, blocks: Iterable[str]) -> None:
    """Tell accelerate, if it is set up for FSDP, how to cut a model into pieces; it then prepares it so.

    Args:
        accelerator: the devices.
        model: what accelerate will prepare.
        blocks: names of the classes whose modules are gathered as one, as diffusers' models have them.

    Raises:
        ConfigError: it is set up for the first version of FSDP, which knows no parts that are left out.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ConfigError(
            "accelerate is set up for the first version of FSDP, which would cut the reflections' columns, too: launch "
            "with --config_file configs/accelerate/fsdp.yaml, or set fsdp_version to 2."
        )
    present = {type(module).__name__ for module in model.modules()}
    plugin.transformer_cls_names_to_wrap = sorted(present.intersection(blocks))
    plugin.ignored_modules = [
        module for module in model.modules() if any(weight.requires_grad for weight in module.parameters(recurse=False))
    ]
    plugin.cpu_ram_efficient_loading = False  # every process has loaded the model
    plugin.mixed_precision_policy = None  # the model has the precision it computes in


def average_gradients(accelerator: Accelerator, weights: Iterable[nn.Parameter]) -> None:
    """EMA, under FSDP, the gradients of what it leaves alone; without it, accelerate has done so."""
    if accelerator.distributed_type == DistributedType.FSDP:
        for weight in weights:
            if weight.grad is not None:
                weight.grad = accelerator.reduce(weight.grad, "mean")


def gather(model: nn.Module) -> None:
    """Put the whole model on each device, where it stays: one of them may then draw with it. All must call this."""
    for piece in pieces(model):
        piece.unshard()
        piece.set_reshard_after_forward(False, recurse=False)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Have the whole model on each device within a ``with`` block. All must enter it."""
    gather(model)
    try:
        yield
    finally:
        for piece in pieces(model):
            piece.set_reshard_after_forward(piece is not model, recurse=False)
            piece.reshard()


def pieces(model: nn.Module) -> list[FSDPModule]:
    """Return the modules whose weights are sharded, each with those of the modules in it that are no pieces."""
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
