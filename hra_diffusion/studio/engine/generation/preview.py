"""Latents → a small preview at almost no cost: the best affine map of channels to the autoencoder's colors.

Least squares on encoded patches of color give the map of any model.
"""

import io
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from hra_diffusion.training.families.latent_space import LatentSpace

_PATCHES, _SIDE = 6, 128
_MAX_SIDE = 320


class Preview:
    """Previews of latents (1, C, h, w); the autoencoder encodes images in [−1, 1], on a device."""

    def __init__(self, vae: Any, device: torch.device) -> None:
        self.to_colors = _fit(vae, device)

    def __call__(self, latents: Tensor, aspect: float = 1.0) -> bytes:
        """Return the preview as a JPEG file.

        Args:
            latents: (1, C, h, w), or packed in tokens (1, h w, C) or, of 2 × 2 pixels, (1, h/2 · w/2, 4 C).
            aspect: height of the image divided by its width, for packed latents.
        """
        if latents.dim() == 3:
            latents = self._unpack(latents, aspect)
        channels = latents[0].float().cpu().flatten(1).T
        colors = torch.cat([channels, torch.ones(len(channels), 1)], 1) @ self.to_colors
        height, width = latents.shape[-2:]
        pixels = (colors.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).reshape(height, width, 3)
        scale = _MAX_SIDE / max(height, width)
        image = Image.fromarray(pixels.numpy()).resize((round(width * scale), round(height * scale)))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80)
        return file.getvalue()

    def _unpack(self, tokens: Tensor, aspect: float) -> Tensor:
        """Return the latents (1, C, h, w) of tokens, whose channels are in the order (C, row, column) of a patch."""
        rows = round((tokens.shape[1] * aspect) ** 0.5)
        side = round((tokens.shape[2] / (len(self.to_colors) - 1)) ** 0.5)
        patches = tokens.unflatten(2, (-1, side, side)).unflatten(1, (rows, -1))
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


@torch.no_grad()
def _fit(vae: Any, device: torch.device) -> Tensor:
    """Return the map (C + 1, 3) of scaled latents, and one, to colors in [−1, 1]."""
    coarse = torch.rand(_PATCHES, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images = nn.functional.interpolate(coarse, (_SIDE, _SIDE), mode="bilinear")
    latents, _ = LatentSpace(vae).encode_images(images, device)
    colors = nn.functional.interpolate(images, latents.shape[-2:], mode="area")
    channels = latents.permute(0, 2, 3, 1).flatten(0, 2)
    inputs = torch.cat([channels, torch.ones(len(channels), 1)], 1)
    return torch.linalg.lstsq(inputs, colors.permute(0, 2, 3, 1).flatten(0, 2), driver="gelsd").solution
