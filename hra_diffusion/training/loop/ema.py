"""Exponential moving average (EMA) of the trained weights over the steps.

    ū ← normalize(β_t ū + (1 − β_t) u),   β_t = min(β, (1 + t) / (10 + t))

Columns u ∈ ℝᵈ lie on a sphere of radius √d, and a mean of points on a sphere lies inside of it: each averaged column is
retracted to the sphere, as after a step of the optimizer. For columns close together, such as those of consecutive
steps, this is their mean on the sphere to second order. Other weights are averaged without retraction. The warm-up of β
is that of TensorFlow and diffusers.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hra_diffusion.training.loop.optimizers import group_by_shape, retract


class EMA:
    """Averages of weights, by name."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        """Start with the weights as they are; ``decay`` β is in [0, 1)."""
        self.weights = {name: weight.detach().clone() for name, weight in weights.items()}
        self.decay = decay
        self._averages = list(self.weights.values())
        self._columns = group_by_shape(average for name, average in self.weights.items() if _are_columns(name))

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Average in the weights after ``step``, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, [weights[name] for name in self.weights], 1 - decay)
        retract(self._columns)

    @torch.no_grad()
    def copy_to(self, weights: Mapping[str, Tensor]) -> None:
        """Copy the averages into weights with the same names."""
        for name, average in self.weights.items():
            weights[name].copy_(average)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averages, by name."""
        return self.weights

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy in averages of weights with the same names and shapes."""
        for name, average in self.weights.items():
            average.copy_(state[name])


def _are_columns(name: str) -> bool:
    return name.rpartition(".")[2].startswith("hra_u_")
