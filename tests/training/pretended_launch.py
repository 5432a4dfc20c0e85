"""A program that trains on CPUs with FSDP or DeepSpeed, which accelerate offers on GPUs only.

    torchrun … tests/training/pretended_launch.py fsdp --config …

It changes accelerate's state as `accelerate launch` with configs/accelerate/fsdp.yaml or deepspeed.yaml does on GPUs;
everything else is accelerate's code.
"""

import sys

from accelerate import Accelerator, DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from torch.distributed.fsdp import FSDPModule

from hra_diffusion.cli.main import main
from hra_diffusion.training import run, setup


def pretend(accelerator: Accelerator, kind: DistributedType) -> None:
    PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type = kind


def shard(accelerator: Accelerator, *arguments) -> None:
    pretend(accelerator, DistributedType.FSDP)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True
    )
    set_up_sharding(accelerator, *arguments)


def save_sharded(model) -> None:
    assert sum(isinstance(module, FSDPModule) for module in model.modules()) > 5, "nothing was sharded"
    unshard(model)


def engage(accelerator: Accelerator, *arguments) -> None:
    plugin = DeepSpeedPlugin(zero_stage=2)
    plugin.set_mixed_precision("no")
    pretend(accelerator, DistributedType.DEEPSPEED)
    AcceleratorState._shared_state["deepspeed_plugins"] = {"default": plugin}
    plugin.select(_from_accelerator_state=True)
    accelerator.deepspeed_engine_wrapped = None
    set_up_deepspeed(accelerator, *arguments)


def save_engaged(model) -> None:
    from deepspeed import DeepSpeedEngine

    assert isinstance(model, DeepSpeedEngine)
    unshard(model)


if __name__ == "__main__":
    set_up_sharding, set_up_deepspeed, unshard = setup.set_up_sharding, setup.set_up_deepspeed, run.unshard
    if sys.argv[1] == "fsdp":
        setup.set_up_sharding, run.unshard = shard, save_sharded
    else:
        setup.set_up_deepspeed, run.unshard = engage, save_engaged
    sys.exit(main(["train", *sys.argv[2:]]))
