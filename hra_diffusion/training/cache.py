"""Latents of the pictures: the autoencoder runs once a picture, not once a step.

What is kept is the encoder's normal distribution, so each step samples the latent anew: z = (μ + σ ε) · scale.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Latent:
    """Distribution of one picture's latent, for each of its V crops: mean and deviation of shape (V, C, h, w)."""

    mean: Tensor
    deviation: Tensor

    def sample(self, crop: int, noise: Tensor) -> Tensor:
        """Return the latent of one crop for standard normal ``noise``, all of shape (C, h, w)."""
        return self.mean[crop] + self.deviation[crop] * noise


@torch.no_grad()
def encode(vae: Any, pictures: Iterable[list[Tensor]]) -> list[Latent]:
    """Encode pictures, each a list of crops of shape (3, H, W) in [−1, 1].

    The results are scaled for the denoiser, in float32 on the CPU. AutoencoderKL gives a distribution, AutoencoderTiny
    a point: its deviation is zero.
    """
    scale = vae.config.scaling_factor
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents: list[Latent] = []
    for crops in pictures:
        encoded = vae.encode(torch.stack(crops).to(vae.device, vae.dtype))
        if hasattr(encoded, "latent_dist"):
            mean, deviation = encoded.latent_dist.mean, encoded.latent_dist.std
        else:
            mean, deviation = encoded.latents, torch.zeros_like(encoded.latents)
        latents.append(Latent((mean.float().cpu() - shift) * scale, deviation.float().cpu() * scale))
    return latents
