"""What every run does before its loop: find the device, put adapters in, connect model, optimizer and batches."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.model import HRAModel
from hra_diffusion.adapter.targets import check_each_target
from hra_diffusion.control.encoder import ConditionEncoder
from hra_diffusion.control.loading import ENCODER
from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines import adapted_components
from hra_diffusion.pipelines.components import models
from hra_diffusion.training.config import AdapterConfig, ModelConfig, OptimizerConfig, RunConfig, TrainingConfig
from hra_diffusion.training.data.batches import Batches, Source
from hra_diffusion.training.devices.deepspeed import set_up_deepspeed
from hra_diffusion.training.devices.quantization import quantize
from hra_diffusion.training.devices.sharding import set_up_sharding
from hra_diffusion.training.families import Family
from hra_diffusion.training.loop.ema import EMA
from hra_diffusion.training.loop.optimizers import build_optimizer
from hra_diffusion.training.loop.trainer import Trainer, trained_weights
from hra_diffusion.training.objective.controlled_denoiser import ControlledDenoiser
from hra_diffusion.training.objective.losses import DenoisingLoss
from hra_diffusion.training.objective.noising import noise_process
from hra_diffusion.training.objective.sampling import Sampling
from hra_diffusion.training.rng import stream

logger = logging.getLogger(__name__)

PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision of the frozen model for each value of --mixed_precision."""


def make_accelerator(run: RunConfig) -> Accelerator:
    """Accelerate's view of the devices.

    Raises:
        ConfigError: this device cannot compute in the wanted precision.
    """
    try:
        accelerator = Accelerator(
            mixed_precision=run.mixed_precision, gradient_accumulation_steps=run.gradient_accumulation_steps
        )
    except ValueError as error:
        raise ConfigError(f"--mixed_precision is {run.mixed_precision}, which does not work here: {error}") from error
    if run.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("--mixed_precision is fp16, which a CPU cannot train in: choose bf16 or no.")
    return accelerator


def add_adapters(family: Family, adapter: AdapterConfig, model: ModelConfig, run: RunConfig) -> None:
    """Put fresh adapters into the pipeline's components that train, and freeze everything else.

    Raises:
        TargetError: one of the target modules matches nothing.
    """
    pipe = family.pipe
    targets = {family.denoiser_name: adapter.target_modules}
    if adapter.train_text_encoder:
        targets |= dict.fromkeys(family.text_encoder_names, adapter.text_encoder_target_modules)
    for component in models(pipe).values():
        component.requires_grad_(False)
    if model.quantization:
        quantize(family.model, model.quantization)
    for name, modules in targets.items():
        config = HRAConfig(
            r=adapter.rank,
            target_modules="all-linear" if modules == ("all-linear",) else modules,
            exclude_modules=family.unreached(name),
            base_model_name_or_path=model.pretrained_model_name_or_path,
            revision=model.revision,
        )
        check_each_target(config, *(getattr(pipe, other) for other in targets if targets[other] == modules))
        start = stream(run.seed, f"start of {name}")
        setattr(pipe, name, HRAModel(getattr(pipe, name), config, generator=start))
    if run.torch_compile:
        # A checkpointed block is compiled for each shape alone, lest it be computed again by the graph of all shapes.
        family.model.compile_repeated_blocks(dynamic=False if run.gradient_checkpointing else None)
    if run.gradient_checkpointing:
        family.model.enable_gradient_checkpointing()
        for text_encoder in (getattr(pipe, name) for name in family.text_encoder_names if name in targets):
            text_encoder.gradient_checkpointing_enable({"use_reentrant": False})
            text_encoder.train()  # transformers checkpoints in training mode only


def trained_parts(pipe: Any) -> dict[str, torch.nn.Module]:
    """Return the components of a pipeline that something trains in, by name."""
    return {
        name: part for name, part in models(pipe).items() if any(weight.requires_grad for weight in part.parameters())
    }


def make_trainer(
    sources: list[Source],
    family: Family,
    accelerator: Accelerator,
    config: TrainingConfig,
    steps: int,
    encoder: ConditionEncoder | None = None,
    encoder_lr: float = 0.0,
) -> Trainer:
    """Connect the adapters that are in the pipeline with optimizer, schedule and some sources of images.

    An encoder of conditions trains along, at a rate of its own.
    """
    objective, schedule, run = config.objective, config.optimizer, config.run
    components, adapted = trained_parts(family.pipe), adapted_components(family.pipe)
    rates = _learning_rates(components, schedule) | {ENCODER: encoder_lr}
    optimizer = build_optimizer(components, rates, schedule, {ENCODER: encoder} if encoder else None)
    if schedule.lr_warmup_steps > steps:
        logger.warning(
            "--lr_warmup_steps is %s, and the run has %s steps: the learning rate never reaches its height.",
            schedule.lr_warmup_steps,
            steps,
        )
    name = schedule.lr_scheduler
    if name == "constant" and schedule.lr_warmup_steps and schedule.optimizer != "schedule_free":
        name = "constant_with_warmup"  # diffusers' constant knows no warm-up; schedule-free has one of its own
    lr_scheduler = get_scheduler(name, optimizer, num_warmup_steps=schedule.lr_warmup_steps, num_training_steps=steps)
    process = noise_process(family.pipe.scheduler, objective.flow_shift)
    denoiser: torch.nn.Module = family.denoiser(config.adapter.text_encoder_trains)
    if encoder:
        denoiser = ControlledDenoiser(denoiser, family.pipe, encoder)
    loss = DenoisingLoss(denoiser, process, objective, list(adapted.values()))
    set_up_sharding(accelerator, loss, family.model._no_split_modules or ())
    set_up_deepspeed(accelerator, optimizer, run.train_batch_size, schedule.max_grad_norm)
    weights = trained_weights(loss)
    loss, prepared_optimizer = accelerator.prepare(loss, optimizer)
    batches = Batches(
        sources=sources,
        sampling=Sampling(process, objective),
        batch_size=run.train_batch_size,
        seed=run.seed,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    trainer = Trainer(
        accelerator=accelerator,
        loss=loss,
        weights=weights,
        optimizer=prepared_optimizer,
        lr_scheduler=lr_scheduler,
        batch_at=batches.__getitem__,
        max_grad_norm=schedule.max_grad_norm,
    )
    if schedule.use_ema:
        trainer.average = EMA(trainer.weights, schedule.ema_decay)
    return trainer


def _learning_rates(components: Mapping[str, object], optimizer: OptimizerConfig) -> dict[str, float]:
    text_encoders = optimizer.text_encoder_lr or optimizer.learning_rate
    return {name: text_encoders if name.startswith("text_encoder") else optimizer.learning_rate for name in components}
