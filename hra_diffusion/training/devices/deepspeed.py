"""DeepSpeed without sharding.

The ZeRO stages (Rajbhandari et al., arXiv 1910.02054) shard the optimizer's state (1), the gradients (2) and the
weights (3) as flat vectors. The columns of a reflection could not be retracted to their sphere in such a vector. Stages
1 and 2 would save little: the trained weights are a few megabytes. Models too large for one device need FSDP: see
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
    """Configure DeepSpeed before accelerate prepares the model; without DeepSpeed, do nothing.

    Args:
        accelerator: the devices.
        optimizer: the optimizer, before ``accelerator.prepare``.
        batch_size: examples per device.
        max_grad_norm: gradients are clipped to this norm.

    Raises:
        ConfigError: DeepSpeed is configured to shard the weights.
    """
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return
    assert accelerator.deepspeed_plugin
    settings = accelerator.deepspeed_plugin.deepspeed_config
    if settings["zero_optimization"].get("stage", 0) > 2:
        raise ConfigError(
            "accelerate is set up for DeepSpeed's ZeRO stage 3, which would shard the reflections' columns: launch "
            "with --config_file configs/accelerate/fsdp.yaml, which shards the frozen weights only."
        )
    settings["zero_optimization"] = {"stage": 0}
    settings["train_micro_batch_size_per_gpu"] = batch_size
    settings["train_batch_size"] = batch_size * accelerator.gradient_accumulation_steps * accelerator.num_processes
    settings["gradient_clipping"] = 0.0  # clipped by the hook below: the engine would not report the norm
    for precision in ("bf16", "fp16"):  # the model has its precision already; trained weights are float32
        settings[precision] = {"enabled": False}

    def clip(optimizer: Any, *_: Any) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        optimizer._global_grad_norm = nn.utils.clip_grad_norm_(weights, max_grad_norm)  # the engine reads it there

    optimizer.register_step_pre_hook(clip)
