"""Latents of the images: the autoencoder runs once an image, not once a step.

What is kept is the encoder's normal distribution, so each step samples the latent anew: z = (μ + σ ε) · scale.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

AT_ONCE = 4
"""Views that the autoencoder takes at once: more need memory and save little time."""


@dataclass(frozen=True)
class Latent:
    """Distribution of one image's latent, for each of its V views: mean and deviation of shape (V, C, h, w)."""

    mean: Tensor
    deviation: Tensor
    weight: Tensor | None = None
    """How much each place counts, of shape (V, 1, h, w); None where all count the same."""

    def sample(self, view: int, noise: Tensor) -> Tensor:
        """Return the latent of one view for standard normal ``noise``, all of shape (C, h, w)."""
        return self.mean[view] + self.deviation[view] * noise


@torch.no_grad()
def encode(vae: Any, images: Iterable[list[Tensor]]) -> list[Latent]:
    """Encode images, each a list of views of shape (3, H, W) in [−1, 1].

    The results are scaled for the denoiser, in float32 on the CPU. AutoencoderKL gives a distribution, AutoencoderTiny
    a point: its deviation is zero.
    """
    scale = vae.config.scaling_factor
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    latents: list[Latent] = []
    for views in images:
        parts: list[tuple[Tensor, Tensor]] = []
        for few in torch.stack(views).split(AT_ONCE):
            encoded = vae.encode(few.to(vae.device, vae.dtype))
            if hasattr(encoded, "latent_dist"):
                mean, deviation = encoded.latent_dist.mean, encoded.latent_dist.std
            else:
                mean, deviation = encoded.latents, torch.zeros_like(encoded.latents)
            parts.append((mean.float().cpu(), deviation.float().cpu()))
        mean, deviation = (torch.cat(part) for part in zip(*parts, strict=True))
        latents.append(Latent((mean - shift) * scale, deviation * scale))
    return latents
