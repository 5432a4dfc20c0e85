"""Latents of the training images: the autoencoder runs once an image, not once a step.

The encoder's normal distribution is kept, so that each step samples the latent anew: z = (μ + σ ε) · scale.

Some autoencoders (Playground 2.5's) name each channel's mean and standard deviation, ``latents_mean`` and
``latents_std``: then z = (μ + σ ε − mean) · scale / std, as in SDXL's pipeline.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ENCODER_PIXELS = 4 * 512 * 512
"""Pixels of the crops in one call of the autoencoder: more need memory and save little time."""


@dataclass(frozen=True)
class Latent:
    """Distribution of one image's latent, for each of its N crops: mean and std of shape (N, C, h, w)."""

    mean: Tensor
    std: Tensor
    weight: Tensor | None = None
    """Loss weight of each latent pixel, of shape (N, 1, h, w); None where all are equal."""

    def sample(self, crop: int, noise: Tensor) -> Tensor:
        """Return the latent of one crop for standard normal ``noise``, all of shape (C, h, w)."""
        return self.mean[crop] + self.std[crop] * noise


@torch.no_grad()
def encode(vae: Any, images: Iterable[list[Tensor]]) -> list[Latent]:
    """Encode images, each a list of crops of shape (3, H, W) in [−1, 1].

    The results are scaled for the denoiser, in float32 on the CPU. AutoencoderKL returns a distribution,
    AutoencoderTiny a point: its std is zero.
    """
    scale, shift = normalization(vae.config)
    latents: list[Latent] = []
    for crops in images:
        parts: list[tuple[Tensor, Tensor]] = []
        batch_size = max(1, ENCODER_PIXELS // crops[0][0].numel())
        for pixels in torch.stack(crops).split(batch_size):
            encoded = vae.encode(pixels.to(vae.device, vae.dtype))
            if hasattr(encoded, "latent_dist"):
                mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
            else:
                mean, std = encoded.latents, torch.zeros_like(encoded.latents)
            parts.append((mean.float().cpu(), std.float().cpu()))
        mean, std = (torch.cat(part) for part in zip(*parts, strict=True))
        latents.append(Latent((mean - shift) * scale, std * scale))
    return latents


def normalization(config: Any) -> tuple[float | Tensor, float | Tensor]:
    """Return the scale and shift of an autoencoder's latents, numbers or a row of channels (C, 1, 1)."""
    scale = config.scaling_factor
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        return scale, getattr(config, "shift_factor", None) or 0.0
    return scale / torch.tensor(std).view(-1, 1, 1), torch.tensor(mean).view(-1, 1, 1)
