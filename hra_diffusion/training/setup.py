"""The parts of every run: devices, adapters, and the trainer that connects model, optimizer and batches."""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from diffusers.optimization import get_scheduler
from torch import nn

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.ranks import check_rank_pattern, unmatched_patterns
from hra_diffusion.adapter.targets import check_target_names, find_targets
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.peft import read_adapter
from hra_diffusion.householder.subspaces import Subspace
from hra_diffusion.model import HRAModel
from hra_diffusion.pipelines import adapted_components
from hra_diffusion.pipelines.components import models, text_encoders
from hra_diffusion.pipelines.loading import matched_to_components
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.config import AdapterConfig, ModelConfig, OptimizerConfig, RunConfig
from hra_diffusion.training.config.base import recorded_path
from hra_diffusion.training.data.batches import Batches, Source
from hra_diffusion.training.devices.block_swap import swap_blocks, swap_larger_models
from hra_diffusion.training.devices.deepspeed import set_up_deepspeed
from hra_diffusion.training.devices.quantization import quantize
from hra_diffusion.training.devices.sharding import set_up_sharding
from hra_diffusion.training.families import Family
from hra_diffusion.training.loop.ema import EMA
from hra_diffusion.training.loop.optimizers import build_optimizer
from hra_diffusion.training.loop.rotation import RotationAngles
from hra_diffusion.training.loop.subspaces import train_within
from hra_diffusion.training.loop.trainer import Trainer, trained_weights
from hra_diffusion.training.loop.validation_loss import ValidationLoss
from hra_diffusion.training.objective.losses import DenoisingLoss
from hra_diffusion.training.objective.sampling import Sampling
from hra_diffusion.training.rng import stream
from hra_diffusion.training.task import Plan, Task

logger = logging.getLogger(__name__)


def make_accelerator(run: RunConfig) -> Accelerator:
    """Return accelerate's view of the devices.

    Raises:
        ConfigError: the device does not support the precision.
    """
    try:
        accelerator = Accelerator(
            mixed_precision=run.mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(run.gradient_accumulation_steps),
        )
    except ValueError as error:
        raise ConfigError(f"--mixed_precision is {run.mixed_precision}, which does not work here: {error}") from error
    if run.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ConfigError("--mixed_precision is fp16, which a CPU cannot train in: choose bf16 or no.")
    if run.blocks_to_swap and accelerator.num_processes > 1:
        raise ConfigError("--blocks_to_swap is for one process: leave it out, or launch with FSDP, which shards.")
    if run.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    return accelerator


def add_adapters(
    family: Family,
    adapter: AdapterConfig,
    model: ModelConfig,
    run: RunConfig,
    device: torch.device,
    initial: Mapping[str, Path] | None = None,
) -> None:
    """Add adapters to the trained components of the pipeline, and freeze everything else.

    Args:
        family: the model.
        adapter: settings of new adapters, which start as the identity.
        model: settings of the model.
        run: settings of the run.
        device: the device of quantization.
        initial: folders of adapters to start from, by component.

    Raises:
        AdapterFileError: an adapter to start from does not fit.
        TargetError: a target module, or a key of --rank_pattern, matches no layer.
        ConfigError: the package for quantization is missing, or there are fewer blocks than --blocks_to_swap.
    """
    pipe = family.pipe
    targets = {family.denoiser_name: adapter.target_modules}
    if adapter.train_text_encoder:
        targets |= dict.fromkeys(family.text_encoder_names, adapter.text_encoder_target_modules)
    parts = matched_to_components(pipe, dict(initial or {}), str(adapter.init_adapter))
    for component in models(pipe).values():
        component.requires_grad_(False)
    if model.quantization:
        quantize(family.model, model.quantization, device)
    base = {
        "base_model_name_or_path": recorded_path(str(model.pretrained_model_name_or_path)),
        "revision": model.revision,
    }
    for name, folder in parts.items():
        config = replace(read_adapter(folder)[0], **base, inference_mode=False)
        setattr(pipe, name, HRAModel.from_pretrained(getattr(pipe, name), folder, is_trainable=True, config=config))
    ranks, names = adapter.rank_pattern or {}, list[str]()
    for name, modules in targets.items():
        if name in parts:
            continue
        config = HRAConfig(
            r=adapter.rank,
            use_magnitude=adapter.use_magnitude,
            target_modules="all-linear" if modules == ("all-linear",) else modules,
            exclude_modules=family.excluded_modules(name),
            **base,
        )
        check_target_names(config, *(getattr(pipe, other) for other in targets if targets[other] == modules))
        layers = find_targets(getattr(pipe, name), config)
        names += layers
        missing = unmatched_patterns(ranks, layers)
        config = replace(config, rank_pattern={key: r for key, r in ranks.items() if key not in missing})
        start = stream(run.seed, f"start of {name}")
        setattr(pipe, name, HRAModel(getattr(pipe, name), config, generator=start))
    if not parts:
        check_rank_pattern(ranks, names)
    _set_up_blocks(family, targets.keys() | parts.keys(), run, device)


def _set_up_blocks(family: Family, adapted: Collection[str], run: RunConfig, device: torch.device) -> None:
    """Swap, compile and checkpoint the blocks of the denoiser and of text encoders, by the settings of a run.

    Args:
        family: the model, with its adapters.
        adapted: names of the adapted components.
        run: the settings.
        device: the device of the steps.

    Raises:
        ConfigError: there are fewer blocks than --blocks_to_swap.
    """
    if run.blocks_to_swap:
        swap_blocks(family.model, run.blocks_to_swap, device)
        frozen = [encoder for name, encoder in text_encoders(family.pipe).items() if name not in adapted]
        swap_larger_models(frozen, family.model, device)
    if run.torch_compile:
        # With dynamic shapes a checkpointed block would be recomputed by another graph.
        family.model.compile_repeated_blocks(dynamic=False if run.gradient_checkpointing else None)
    if run.gradient_checkpointing:
        family.model.enable_gradient_checkpointing()
        for text_encoder in (getattr(family.pipe, name) for name in family.text_encoder_names if name in adapted):
            text_encoder.gradient_checkpointing_enable({"use_reentrant": False})
            text_encoder.train()  # transformers checkpoints in training mode only


def trained_components(pipe: Pipeline) -> dict[str, nn.Module]:
    """Return the components of a pipeline that have trained parameters, by name."""
    return {
        name: part for name, part in models(pipe).items() if any(weight.requires_grad for weight in part.parameters())
    }


def build_trainer(
    task: Task,
    sources: list[Source],
    family: Family,
    accelerator: Accelerator,
    plan: Plan,
    subspaces: Mapping[nn.Parameter, Subspace],
) -> Trainer:
    """Connect denoiser, optimizer, learning rate schedule and batches; columns stay within their subspaces."""
    settings, run = plan.config.optimizer, plan.config.run
    extra = task.extra_modules
    components = trained_components(family.pipe)
    rates = _learning_rates(components, settings) | {name: module.learning_rate for name, module in extra.items()}
    ordinary = {name: module.module for name, module in extra.items()}
    optimizer = build_optimizer(components, rates, settings, ordinary, accelerator.device)
    if subspaces:
        train_within(optimizer, subspaces)
    lr_scheduler = _lr_scheduler(optimizer, settings, plan.total_steps)
    process = family.noise_process(plan.config.objective.flow_shift)
    adapted = list(adapted_components(family.pipe).values())
    loss: nn.Module = DenoisingLoss(task.denoiser(family), process, plan.config.objective, adapted)
    set_up_sharding(accelerator, loss, family.model._no_split_modules or ())
    set_up_deepspeed(accelerator, optimizer, run.train_batch_size, settings.max_grad_norm)
    weights = trained_weights(loss)
    loss, optimizer = accelerator.prepare(loss, optimizer)
    token_names = family.text_encoder_names if plan.config.adapter.text_encoder_trains else ()
    batches = Batches(
        sources=[source for source in sources if not source.validate_every],
        sampling=Sampling(process, plan.config.objective),
        batch_size=run.train_batch_size,
        seed=run.seed,
        token_names=token_names,
        process=accelerator.process_index,
        processes=accelerator.num_processes,
    )
    return Trainer(
        accelerator=accelerator,
        loss=loss,
        weights=weights,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        batch_at=batches.__getitem__,
        max_grad_norm=settings.max_grad_norm,
        ema=EMA(weights, settings.ema_decay) if settings.use_ema else None,
        angles=RotationAngles(adapted_components(family.pipe)),
        validation_loss=_validation_loss(sources, batches),
    )


def _validation_loss(sources: Iterable[Source], batches: Batches) -> ValidationLoss | None:
    """Return the loss on the held-out images, if there are any."""
    held_out = next((source for source in sources if source.validate_every), None)
    if held_out is None:
        return None
    return ValidationLoss(
        held_out,
        batches.sampling.process,
        batch_size=batches.batch_size,
        seed=batches.seed,
        token_names=batches.token_names,
    )


def _lr_scheduler(optimizer: Any, settings: OptimizerConfig, steps: int) -> Any:
    if settings.lr_warmup_steps > steps:
        logger.warning(
            "--lr_warmup_steps is %s, and the run has %s steps: the learning rate never reaches its maximum.",
            settings.lr_warmup_steps,
            steps,
        )
    name = settings.lr_scheduler
    if name == "constant" and settings.lr_warmup_steps and settings.optimizer != "schedule_free":
        name = "constant_with_warmup"  # diffusers' constant ignores a warm-up; schedule_free has its own
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=steps,
        num_cycles=settings.lr_num_cycles,
    )


def _learning_rates(components: Mapping[str, object], settings: OptimizerConfig) -> dict[str, float]:
    text_encoders = settings.text_encoder_lr or settings.learning_rate
    return {name: text_encoders if name.startswith("text_encoder") else settings.learning_rate for name in components}
