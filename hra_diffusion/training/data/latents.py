"""Latents of the training images: the autoencoder runs once an image, not once a step.

The encoder's normal distribution is kept, so that each step samples the latent anew.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from hra_diffusion.training.families.latent_space import LatentSpace

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

    def loss_weight(self, crop: int) -> Tensor:
        """Return the loss weight of one crop's pixels, of shape (1, h, w)."""
        return torch.ones(1, *self.mean.shape[2:]) if self.weight is None else self.weight[crop]


@torch.no_grad()
def encode(latent_space: LatentSpace, images: Iterable[list[Tensor]]) -> list[Latent]:
    """Encode images, each a list of crops of shape (3, H, W) in [−1, 1]; the results are in float32 on the CPU."""
    latents: list[Latent] = []
    for crops in images:
        batch_size = max(1, ENCODER_PIXELS // crops[0][0].numel())
        parts = [latent_space.encode_images(pixels) for pixels in torch.stack(crops).split(batch_size)]
        mean, std = (torch.cat(part) for part in zip(*parts, strict=True))
        latents.append(Latent(mean, std))
    return latents
