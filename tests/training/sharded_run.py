"""A training run whose frozen weights are sharded, on CPUs, for which accelerate does not offer it: a program.

Accelerate is told afterwards that it is set up for FSDP, as `accelerate launch` with configs/accelerate/fsdp.yaml tells
it on GPUs; what it does then is its own.
"""

import sys

from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch.distributed.fsdp import FSDPModule

from hra_diffusion.cli.main import main
from hra_diffusion.training import sharding


def set_up(accelerator: Accelerator, *arguments) -> None:
    PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True
    )
    original(accelerator, *arguments)


def save(model) -> None:
    assert sum(isinstance(module, FSDPModule) for module in model.modules()) > 5, "nothing was sharded"
    gather(model)


if __name__ == "__main__":
    from hra_diffusion.training import run, setup

    original, gather = sharding.set_up_sharding, sharding.gather
    setup.set_up_sharding, run.gather = set_up, save
    sys.exit(main(["train", *sys.argv[1:]]))
