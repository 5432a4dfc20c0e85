"""The optimiser for reflections, with a learning rate in radians that means the same at every rank and width.

H = H₁ ⋯ H_r depends only on the directions of its r columns u ∈ ℝᵈ, which start at length √d. A step of AdamW moves
each entry by about its rate, a column hence by as many radians, and H by ‖ΔH‖_F ≈ 4·√r of them: from the paired start,
a pair whose columns part by φ rotates its plane by 2φ. Dividing by 4·√r leaves

    ‖ΔH‖_F ≈ learning rate

and bringing the columns back to length √d after each step keeps it so: otherwise gradients, being orthogonal to u,
would let ‖u‖ grow and the steps fade. What is saved means the same, since H does not see ‖u‖.
Retraction on the sphere: Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds, ch. 4.
"""

from collections.abc import Iterable, Mapping
from itertools import groupby
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.training.config import OptimiserConfig


def build_optimizer(
    components: Mapping[str, nn.Module], learning_rates: Mapping[str, float], config: OptimiserConfig
) -> torch.optim.AdamW:
    """AdamW over the reflections of some components, each with its learning rate in radians.

    Weight decay would not change H, only the length of its columns: there is none.
    """
    groups = [
        group for name, component in components.items() for group in _groups(name, component, learning_rates[name])
    ]
    reflections = [parameter for group in groups for parameter in group["params"]]
    retract(reflections)
    optimizer = torch.optim.AdamW(
        groups, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon, weight_decay=0.0
    )
    optimizer.register_step_post_hook(lambda *_: retract(reflections))
    return optimizer


@torch.no_grad()
def retract(reflections: Iterable[Tensor]) -> None:
    """Bring the columns of each (d, r) matrix back to length √d, in place; zero columns (no reflection) stay zero."""
    for columns in reflections:
        lengths = columns.norm(dim=0)
        columns *= torch.where(lengths > 0, sqrt(len(columns)) / lengths, 1.0)


def _groups(name: str, component: nn.Module, radians: float) -> list[dict[str, Any]]:
    """One parameter group for each rank in a component."""
    reflections = sorted((p for p in component.parameters() if p.requires_grad), key=_rank)
    return [
        {
            "params": list(group),
            "lr": radians / (4 * sqrt(rank)),
            "lr_per_radian": 1 / (4 * sqrt(rank)),
            "component": name,
        }
        for rank, group in groupby(reflections, key=_rank)
    ]


def _rank(columns: Tensor) -> int:
    return columns.shape[1]
