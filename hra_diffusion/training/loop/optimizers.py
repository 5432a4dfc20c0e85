"""Optimizers for reflections, with a learning rate in radians that means the same at every rank and width.

H = H₁ ⋯ H_r depends only on the directions of its r columns u ∈ ℝᵈ, which start at length √d. A step of AdamW moves
each entry by about its rate, a column hence by as many radians, and H by ‖ΔH‖_F ≈ 4·√r times the rate: from the paired
start, a pair whose columns part by φ rotates its plane by 2φ. Dividing by 4·√r leaves

    ‖ΔH‖_F ≈ learning rate

Retracting the columns to length √d after each step keeps it so: gradients are orthogonal to u, so that ‖u‖ would grow
and the steps would shrink. Retraction leaves H unchanged, which does not depend on ‖u‖.
Retraction on the sphere: Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds, ch. 4.

The same holds for every optimizer whose step has about the size of its rate in each entry: AdamW (plain, in 8 bits or
schedule-free), Lion, whose steps have exactly this size, and Adafactor, whose steps are relative to the root mean
square of the entries, which at length √d is 1. Prodigy estimates its rate; the estimate is logged in radians. Its usual
initial estimate of 1e-6 suits weights of about 0.01. Entries here have size 1, and it starts at 1e-4, still far below
any useful rate.

Magnitudes m = exp(p) of the d_out rows of W are weights of another kind. A step of size η in every p changes W' by
‖ΔW'‖_F ≈ η ‖W‖_F, and one of the columns by ‖W ΔH‖_F ≈ rate · ‖W‖_F / √d for a W without preferred inputs. With
η = rate / √d both change the outputs of a layer by as much.

Token embeddings are columns of length √d times a constant length: their rate is the angle of a step.
"""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config import OptimizerConfig

_ABSOLUTE_STEPS = (None, 1.0)
"""Adafactor's eps₁, the default, and eps₂, the least size that steps are relative to. Weights other than reflections
may start at zero, and would hardly move with the usual eps₂ of 0.001."""

_FUSED = ("cpu", "cuda", "mps", "xpu")
"""Types of devices on which torch's AdamW is one kernel."""

_SHORTEST = 1e-35
"""Least length of columns other than zero: the squares of shorter ones are zero in float32."""

# Module and class of each optimizer, and the extra that installs it.
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
    device: torch.device | str = "cpu",
) -> torch.optim.Optimizer:
    """Return an optimizer over the reflections of components, with learning rates in radians.

    There is no weight decay: it would change the length of the columns and not H.

    Args:
        components: the adapted components, by name.
        learning_rates: the rate of each component and of each ordinary module, by name.
        config: the optimizer and its settings.
        ordinary: modules without reflections, by name; their learning rates are used as given.
        device: the device of the steps, on which AdamW is one kernel where torch has it.

    Raises:
        ConfigError: the optimizer's package is not installed, or does not support the settings or the adapters.
    """
    groups = [
        group for name, component in components.items() for group in _groups(name, component, learning_rates[name])
    ]
    reflections = [parameter for group in groups for parameter in group["params"] if parameter.dim() == 2]
    others = [group for group in groups if group["params"][0].dim() == 1]  # of magnitudes
    if others:
        config.check_magnitudes()
    for name, module in (ordinary or {}).items():
        weights = list(module.parameters())
        groups.append({"params": weights, "lr": learning_rates[name], "lr_per_radian": 1.0, "component": name})
        others.append(groups[-1])
    if config.optimizer == "adafactor":
        for group in others:
            group["eps"] = _ABSOLUTE_STEPS
    if config.optimizer == "prodigy":
        for group in groups:
            group["lr"] = 1.0
    shapes = group_by_shape(reflections)
    retract(shapes)
    optimizer = check_optimizer(config)(groups, **_options(config, torch.device(device)))
    if config.optimizer == "schedule_free":
        optimizer.train()
    if config.optimizer == "adamw":
        optimizer.register_load_state_dict_pre_hook(_load_into_this_implementation)
    optimizer.register_step_post_hook(lambda *_: retract([*shapes, *_base_sequence(optimizer, shapes)]))
    return optimizer


def _base_sequence(optimizer: torch.optim.Optimizer, shapes: Iterable[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Return the base sequence z of a schedule-free optimizer: columns in its state, to be retracted, too."""
    base = [[optimizer.state[columns].get("z") for columns in group] for group in shapes]
    return [[z for z in group if z is not None] for group in base if any(z is not None for z in group)]


def _load_into_this_implementation(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Replace the implementation that a saved state names by the optimizer's: the device may be another one."""
    groups = [{**group, "fused": optimizer.defaults["fused"], "foreach": None} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def _options(config: OptimizerConfig, device: torch.device) -> dict[str, Any]:
    """Return the keyword arguments of an optimizer's constructor."""
    if config.optimizer in ("lion", "adafactor"):
        return {"weight_decay": 0.0}
    adam = {"betas": (config.adam_beta1, config.adam_beta2), "eps": config.adam_epsilon, "weight_decay": 0.0}
    if config.optimizer == "schedule_free":
        return adam | {"warmup_steps": config.lr_warmup_steps}
    if config.optimizer == "prodigy":
        return adam | {"d0": 1e-4, "decouple": True, "use_bias_correction": True, "safeguard_warmup": True}
    if config.optimizer == "adamw":
        return adam | {"fused": device.type in _FUSED or None}
    return adam


def check_optimizer(config: OptimizerConfig) -> Any:
    """Import an optimizer's class from its package.

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


def group_by_shape(reflections: Iterable[Tensor]) -> list[list[Tensor]]:
    """Return the matrices of columns of each shape, dtype and device, for :func:`retract`."""
    groups: dict[Any, list[Tensor]] = {}
    for columns in reflections:
        groups.setdefault((columns.shape, columns.dtype, columns.device), []).append(columns)
    return list(groups.values())


@torch.no_grad()
def retract(shapes: Iterable[Sequence[Tensor]]) -> None:
    """Scale columns to length √d, in place; zero columns (no reflection) stay zero.

    The (d, r) matrices of a shape are stacked, and take a few operations together.

    Args:
        shapes: see :func:`group_by_shape`.
    """
    groups = list(shapes)
    if not groups:
        return
    stacks = [torch.stack(tuple(group)) for group in groups]
    factors = [torch.linalg.vector_norm(stack, dim=1, keepdim=True) for stack in stacks]
    torch._foreach_clamp_min_(factors, _SHORTEST)
    torch._foreach_reciprocal_(factors)
    torch._foreach_mul_(factors, [sqrt(stack.shape[1]) for stack in stacks])
    torch._foreach_mul_(stacks, factors)
    scaled = [columns for stack in stacks for columns in stack.unbind()]
    torch._foreach_copy_([columns for group in groups for columns in group], scaled)


def _groups(name: str, component: nn.Module, radians: float) -> list[dict[str, Any]]:
    """Return one parameter group for all columns, and for all magnitudes, of a component with the same rate."""
    trained = {weight: columns for weight, columns in component.named_parameters() if columns.requires_grad}
    rates = {
        weight: (columns.dim(), _rate_per_radian(weight, columns, component)) for weight, columns in trained.items()
    }
    return [
        {
            "params": [trained[weight] for weight in group],
            "lr": radians * rate,
            "lr_per_radian": rate,
            "component": name,
        }
        for (_, rate), group in groupby(sorted(trained, key=rates.__getitem__, reverse=True), key=rates.__getitem__)
    ]


def _rate_per_radian(name: str, columns: Tensor, component: nn.Module) -> float:
    """Return the step size per entry that rotates columns by one radian, or changes a layer by as much."""
    if columns.dim() == 1:  # a magnitude
        layer: Any = component.get_submodule(name.rpartition(".")[0])
        return 1 / sqrt(layer.unfolded_size)
    return 1.0 if name.endswith("hra_u_tokens") else 1 / (4 * sqrt(columns.shape[1]))
