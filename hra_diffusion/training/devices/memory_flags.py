"""Flags that lower the memory of a run, by phase, the most useful first."""

from collections.abc import Iterator

from hra_diffusion.training.config import DreamBoothConfig, TrainingConfig


def flags_for_training(config: TrainingConfig) -> Iterator[str]:
    """Yield the flags that lower the memory of the steps and are not in use."""
    run, adapter = config.run, config.adapter
    if run.mixed_precision == "no":
        yield "--mixed_precision bf16"
    if not run.gradient_checkpointing:
        yield "--gradient_checkpointing"
    if run.train_batch_size > 1:
        examples = run.train_batch_size * run.gradient_accumulation_steps
        yield f"--train_batch_size 1 --gradient_accumulation_steps {examples}"
    if adapter.train_text_encoder:
        yield "--no_train_text_encoder"
    if config.model.quantization is None:
        yield "--quantization int8"
    if run.gradient_checkpointing and not run.blocks_to_swap and config.model.quantization != "nf4":
        yield "--blocks_to_swap N"
    if isinstance(config, DreamBoothConfig) and config.prior.with_prior_preservation:
        yield "--no_with_prior_preservation"
    yield "a smaller --resolution"


def flags_for_generating(config: TrainingConfig) -> Iterator[str]:
    """Yield the flags that lower the memory of encoding and of generated images, and are not in use."""
    if config.run.mixed_precision == "no":
        yield "--mixed_precision bf16"
    prior = config.prior if isinstance(config, DreamBoothConfig) else None
    if prior and prior.with_prior_preservation and prior.sample_batch_size > 1:
        yield "--sample_batch_size 1"
    yield "a smaller --resolution"
