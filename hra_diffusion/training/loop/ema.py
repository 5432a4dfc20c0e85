"""The average of what trains over the steps (EMA): steadier than the last step, and what is saved when it is wanted.

    ū ← normalize(β_t ū + (1 − β_t) u),   β_t = min(β, (1 + t) / (10 + t))

Columns u ∈ ℝᵈ live on a sphere of radius √d, and a mean of points on a sphere lies inside of it: each average is drawn
out to the sphere again, as a step of the optimizer is. Near each other, as consecutive steps are, that is their mean on
the sphere to second order. What is no column is averaged plainly. The warm-up of β is TensorFlow's and diffusers'.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hra_diffusion.training.loop.optimizers import retract


class EMA:
    """Averages of some weights, by their names."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        """Begin with the weights as they are; ``decay`` β is in [0, 1)."""
        self.weights = {name: weight.detach().clone() for name, weight in weights.items()}
        self.decay = decay

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], step: int) -> None:
        """Take in the weights after ``step``, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.weights.items():
            average.lerp_(weights[name].detach(), 1 - decay)
        retract(average for name, average in self.weights.items() if _are_columns(name))

    def state_dict(self) -> dict[str, Tensor]:
        """The averages."""
        return self.weights

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from averages of weights with the same names and shapes."""
        for name, average in self.weights.items():
            average.copy_(state[name])


def _are_columns(name: str) -> bool:
    return name.rpartition(".")[2].startswith("hra_u_")
