"""What training draws for each example beside its image: a timestep, and noise of the shape that was asked for.

Positions p in [0, 1), from no noise to nothing else, with the densities of Esser et al., arXiv 2403.03206, section 3.1:

    uniform
    logit_normal    p = 1 / (1 + exp(−(m + s z))),  z standard normal
    mode            p = 1 − q − k (cos²(π q / 2) − 1 + q),  q uniform
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hra_diffusion.training.config import ObjectiveConfig
from hra_diffusion.training.objective.noising import Flow, NoiseProcess


@dataclass(frozen=True)
class Sampling:
    """Draws for a noise process as an objective has it; which, the generator alone decides."""

    process: NoiseProcess
    objective: ObjectiveConfig

    def timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw timesteps to train at, of shape (count,)."""
        return self.process.timesteps(positions(self._density, count, self.objective, generator))

    def noises(self, noise: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Turn standard normal noise (B, C, h, w) into inputs of the loss.

        With an offset (Guttenberg, "Diffusion with offset noise", 2023) each channel's mean varies more, so that
        images may be as dark or bright as a prompt wants. With a perturbation (Ning et al., arXiv 2301.11706) latents
        are noised with other noise than what is to be predicted, as they are in sampling after an error.
        """
        offset, perturbation = self.objective.noise_offset, self.objective.input_perturbation
        if offset:
            noise = noise + offset * torch.randn((*noise.shape[:2], 1, 1), generator=generator)
        if not perturbation:
            return {"noise": noise}
        return {"noise": noise, "added_noise": noise + perturbation * torch.randn(noise.shape, generator=generator)}

    @property
    def _density(self) -> str:
        return self.objective.timestep_sampling or ("logit_normal" if isinstance(self.process, Flow) else "uniform")


def positions(density: str, count: int, objective: ObjectiveConfig, generator: torch.Generator) -> Tensor:
    """Draw positions in [0, 1), of shape (count,)."""
    if density == "logit_normal":
        z = torch.randn(count, generator=generator)
        return torch.sigmoid(objective.logit_mean + objective.logit_std * z)
    q = torch.rand(count, generator=generator)
    if density == "mode":
        return (1 - q - objective.mode_scale * (torch.cos(math.pi * q / 2) ** 2 - 1 + q)).clamp(0, 1)
    return q
