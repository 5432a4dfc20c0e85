"""Random timesteps and noise for training examples.

Positions p in [0, 1), from no noise to noise alone, with the densities of Esser et al., arXiv 2403.03206, section 3.1:

    uniform
    logit_normal    p = 1 / (1 + exp(−(m + s z))),  z standard normal
    mode            p = 1 − q − k (cos²(π q / 2) − 1 + q),  q uniform
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hra_diffusion.training.config import ObjectiveConfig
from hra_diffusion.training.objective.noising import Flow, NoiseProcess


@dataclass(frozen=True)
class Sampling:
    """A sampler of timesteps and noise for a noise process, by the settings of an objective."""

    process: NoiseProcess
    objective: ObjectiveConfig

    def sample_timesteps(self, count: int, generator: torch.Generator, size: Sequence[int] = ()) -> Tensor:
        """Sample timesteps to train at, of shape (count,), for latents of shape (C, h, w)."""
        return self.process.timesteps(sample_positions(self._density, count, self.objective, generator), size)

    def noise_inputs(self, noise: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Turn standard normal noise (B, C, h, w) into the loss's inputs ``noise`` and ``added_noise``.

        An offset (Guttenberg, "Diffusion with offset noise", 2023) varies the mean of each channel more, so that images
        may be as dark or bright as a prompt asks for. A perturbation (Ning et al., arXiv 2301.11706) makes the noise
        added to the latents differ from the noise to predict, as after an error during sampling.
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


def sample_positions(density: str, count: int, objective: ObjectiveConfig, generator: torch.Generator) -> Tensor:
    """Sample positions in [0, 1), of shape (count,)."""
    if density == "logit_normal":
        z = torch.randn(count, generator=generator)
        return torch.sigmoid(objective.logit_mean + objective.logit_std * z)
    q = torch.rand(count, generator=generator)
    if density == "mode":
        return (1 - q - objective.mode_scale * (torch.cos(math.pi * q / 2) ** 2 - 1 + q)).clamp(0, 1)
    return q
