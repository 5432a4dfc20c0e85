"""Bounds of all numeric settings, by the names of their fields."""

import math
import operator
from collections.abc import Callable

from hra_diffusion.errors import ConfigError

BOUNDS: tuple[tuple[str, Callable[[float, float], bool], dict[str, float]], ...] = (
    (
        "at least",
        operator.ge,
        {
            "resolution": 8,
            "height": 8,
            "width": 8,
            "num_images": 1,
            "num_contexts": 1,
            "num_pairs": 1,
            "batch_size": 1,
            "num_class_images": 1,
            "prior_loss_weight": 0,
            "max_train_samples": 1,
            "proportion_empty_prompts": 0,
            "proportion_empty_conditions": 0,
            "proportion_empty_both": 0,
            "sample_batch_size": 1,
            "rank": 1,
            "num_new_tokens_per_abstraction": 1,
            "lr_warmup_steps": 0,
            "lr_num_cycles": 1,
            "clip_skip": 0,
            "blocks_to_swap": 0,
            "max_train_steps": 1,
            "num_train_epochs": 1,
            "train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "checkpointing_steps": 1,
            "checkpoints_total_limit": 1,
            "seed": 0,
            "num_validation_images": 1,
            "num_inference_steps": 1,
            "validation_steps": 1,
            "validate_every_n_steps": 1,
            "validation_split": 0,
            "caption_dropout_rate": 0,
            "keep_tokens": 0,
            "guidance_scale": 0,
            "adam_beta1": 0,
            "adam_beta2": 0,
            "color_jitter": 0,
            "unmasked_weight": 0,
            "ema_decay": 0,
            "mode_scale": 0,
            "noise_offset": 0,
            "input_perturbation": 0,
            "orthogonality_weight": 0,
        },
    ),
    (
        "greater than",
        operator.gt,
        {
            "learning_rate": 0,
            "text_encoder_lr": 0,
            "encoder_lr": 0,
            "adam_epsilon": 0,
            "max_grad_norm": 0,
            "snr_gamma": 0,
            "huber_c": 0,
            "logit_std": 0,
            "flow_shift": 0,
        },
    ),
    (
        "at most",
        operator.le,
        {"unmasked_weight": 1, "caption_dropout_rate": 1, "huber_c": 1, "num_inference_steps": 1000},
    ),
    (
        "less than",
        operator.lt,
        {"color_jitter": 1, "validation_split": 1, "adam_beta1": 1, "adam_beta2": 1, "ema_decay": 1, "seed": 2**63},
    ),
)


def check_value(name: str, value: object) -> None:
    """Raise ConfigError if ``value``, or a number of a tuple, is not allowed for the field ``name``."""
    if isinstance(value, tuple):
        for number in value:
            if isinstance(number, int):
                check_value(name, number)
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise ConfigError(f"--{name} is {value}: give a finite number.")
        for relation, holds, limits in BOUNDS:
            if name in limits and not holds(value, limits[name]):
                raise ConfigError(f"--{name} is {value}: give a number {relation} {limits[name]}.")
    elif value == ():
        raise ConfigError(f"--{name} is empty: give at least one value, or leave the flag out for its default.")
    elif isinstance(value, str) and not value.strip():
        raise ConfigError(f"--{name} is an empty text: give it a value, or leave the flag out.")
