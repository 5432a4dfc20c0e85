"""DeepSpeed's engine, with nothing cut into pieces.

Its ZeRO stages (Rajbhandari et al., arXiv 1910.02054) shard the optimizer's state (1), the gradients (2) and the
weights (3) as flat vectors, in which the columns of a reflection could not be kept on their sphere. The first two are
about what trains, a few megabytes here, and are done without; for models that one device cannot hold there is FSDP: see
:mod:`hra_diffusion.training.devices.sharding`.
"""

from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import nn

from hra_diffusion.errors import ConfigError


def set_up_deepspeed(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, batch_size: int, max_grad_norm: float
) -> None:
    """Tell accelerate, if it is set up for DeepSpeed, how its engine is to train; it then makes it so.

    Args:
        accelerator: the devices.
        optimizer: what accelerate will prepare.
        batch_size: of a device.
        max_grad_norm: longer gradients are shortened to it.

    Raises:
        ConfigError: it is set up to shard the weights.
    """
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return
    settings = accelerator.deepspeed_plugin.deepspeed_config
    if settings["zero_optimization"].get("stage", 0) > 2:
        raise ConfigError(
            "accelerate is set up for DeepSpeed's ZeRO stage 3, which would cut the reflections' columns, too: launch "
            "with --config_file configs/accelerate/fsdp.yaml, which cuts the frozen weights alone."
        )
    settings["zero_optimization"] = {"stage": 0}
    settings["train_micro_batch_size_per_gpu"] = batch_size
    settings["train_batch_size"] = batch_size * accelerator.gradient_accumulation_steps * accelerator.num_processes
    settings["gradient_clipping"] = 0.0  # see below: the engine clips, but says no norm
    for precision in ("bf16", "fp16"):  # the model has the precision it computes in, and what trains float32
        settings[precision] = {"enabled": False}

    def clip(optimizer: Any, *_: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        optimizer._global_grad_norm = nn.utils.clip_grad_norm_(weights, max_grad_norm)  # where the engine looks for it

    optimizer.register_step_pre_hook(clip)
