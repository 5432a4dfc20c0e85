"""The optimizer for reflections, with a learning rate in radians that means the same at every rank and width.

H = H₁ ⋯ H_r depends only on the directions of its r columns u ∈ ℝᵈ, which start at length √d. A step of AdamW moves
each entry by about its rate, a column hence by as many radians, and H by ‖ΔH‖_F ≈ 4·√r of them: from the paired start,
a pair whose columns part by φ rotates its plane by 2φ. Dividing by 4·√r leaves

    ‖ΔH‖_F ≈ learning rate

and bringing the columns back to length √d after each step keeps it so: otherwise gradients, being orthogonal to u,
would let ‖u‖ grow and the steps fade. What is saved means the same, since H does not see ‖u‖.
Retraction on the sphere: Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds, ch. 4.

The same holds for every optimizer here whose step has about the size of its rate in each entry: AdamW, whole, in 8 bits
or schedule-free, Lion, whose steps have just that size, and Adafactor, whose steps are relative to the root mean square
of the entries, which at length √d is 1. Prodigy finds its own rate; what it found is logged in radians. Its usual start
of 1e-6 is for weights of some 0.01; entries here are of the size 1, and it starts at 1e-4, which is far below any
useful rate still.

The vectors of new words are columns of length √d, too, times a length that does not train: there, the rate is how far
a vector turns.
"""

import importlib
from collections.abc import Iterable, Mapping
from itertools import groupby
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config import OptimizerConfig

_STEPS_AS_THEY_ARE = (None, 1.0)
"""Adafactor's eps₁, its own, and eps₂, the least size that steps are relative to. Weights that are no reflections may
start at zero, and would hardly move with the usual 0.001."""

# Module and class of each optimizer, and the extra that it comes with.
_CLASSES = {
    "adamw": ("torch.optim", "AdamW", ""),
    "adamw_8bit": ("bitsandbytes.optim", "AdamW8bit", "8bit"),
    "schedule_free": ("schedulefree", "AdamWScheduleFree", "optimizers"),
    "prodigy": ("prodigyopt", "Prodigy", "optimizers"),
    "lion": ("lion_pytorch", "Lion", "optimizers"),
    "adafactor": ("torch.optim", "Adafactor", ""),
}


def build_optimizer(
    components: Mapping[str, nn.Module],
    learning_rates: Mapping[str, float],
    config: OptimizerConfig,
    ordinary: Mapping[str, nn.Module] | None = None,
) -> torch.optim.Optimizer:
    """An optimizer over the reflections of some components, each with its learning rate in radians.

    Weights of ``ordinary`` modules, which are no reflections, take their learning rate as it is.

    Weight decay would not change H, only the length of its columns: there is none.

    Raises:
        ConfigError: its package is not installed, or the settings do not go with it.
    """
    groups = [
        group for name, component in components.items() for group in _groups(name, component, learning_rates[name])
    ]
    reflections = [parameter for group in groups for parameter in group["params"]]
    for name, module in (ordinary or {}).items():
        weights = list(module.parameters())
        groups.append({"params": weights, "lr": learning_rates[name], "lr_per_radian": 1.0, "component": name})
        if config.optimizer == "adafactor":
            groups[-1]["eps"] = _STEPS_AS_THEY_ARE
    if config.optimizer == "prodigy":
        for group in groups:
            group["lr"] = 1.0
    retract(reflections)
    optimizer = check_optimizer(config)(groups, **_options(config))
    if config.optimizer == "schedule_free":
        optimizer.train()
    optimizer.register_step_post_hook(lambda *_: retract([*reflections, *_sequences(optimizer, reflections)]))
    return optimizer


def _sequences(optimizer: torch.optim.Optimizer, reflections: Iterable[Tensor]) -> list[Tensor]:
    """Reflections that an optimizer keeps beside those it is given: the base sequence of schedule-free ones."""
    return [optimizer.state[columns]["z"] for columns in reflections if "z" in optimizer.state[columns]]


def _options(config: OptimizerConfig) -> dict[str, Any]:
    """Return what an optimizer is made with beside its parameters."""
    if config.optimizer in ("lion", "adafactor"):
        return {"weight_decay": 0.0}
    adam = {"betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon, "weight_decay": 0.0}
    if config.optimizer == "schedule_free":
        return adam | {"warmup_steps": config.lr_warmup_steps}
    if config.optimizer == "prodigy":
        return adam | {"d0": 1e-4, "decouple": True, "use_bias_correction": True, "safeguard_warmup": True}
    return adam


def check_optimizer(config: OptimizerConfig) -> Any:
    """Import an optimizer's class from its package, which is not always there.

    Raises:
        ConfigError: the package is not installed.
    """
    module, name, extra = _CLASSES[config.optimizer]
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ConfigError(
            f"--optimizer needs the package {module.partition('.')[0]} for {name} ({error}): install it with "
            f"pip install 'hra-diffusion[{extra}]', or choose adamw."
        ) from error


@torch.no_grad()
def retract(reflections: Iterable[Tensor]) -> None:
    """Bring the columns of each (d, r) matrix back to length √d, in place; zero columns (no reflection) stay zero."""
    for columns in reflections:
        lengths = columns.norm(dim=0)
        columns *= torch.where(lengths > 0, sqrt(len(columns)) / lengths, 1.0)


def _groups(name: str, component: nn.Module, radians: float) -> list[dict[str, Any]]:
    """One parameter group for all columns of a component that take the same rate."""
    trained = {each: columns for each, columns in component.named_parameters() if columns.requires_grad}
    rates = {each: _rate_per_radian(each, columns) for each, columns in trained.items()}
    return [
        {
            "params": [trained[each] for each in group],
            "lr": radians * rate,
            "lr_per_radian": rate,
            "component": name,
        }
        for rate, group in groupby(sorted(trained, key=rates.__getitem__, reverse=True), key=rates.__getitem__)
    ]


def _rate_per_radian(name: str, columns: Tensor) -> float:
    """Return how far a step moves each entry of some columns, so that it turns by one radian."""
    return 1.0 if name.endswith("hra_u_tokens") else 1 / (4 * sqrt(columns.shape[1]))
