"""The latents that a denoiser takes, and the autoencoder that makes them of images: z = (μ + σ ε − shift) · scale.

The autoencoder decides on the normalization:

    scaling_factor, shift_factor     one number each (Stable Diffusion, FLUX.1)
    latents_mean, latents_std        a number a channel (Playground 2.5, Qwen-Image)
    the statistics of a batch norm   a number a channel, after patches of 2 × 2 (FLUX.2)

An autoencoder of videos takes an image as a video of one frame.
"""

from typing import Any, Literal

import torch
from torch import Tensor

Normalization = Literal["scaling_factor", "latents_mean and latents_std", "a batch norm"]


class LatentSpace:
    """The latents of an autoencoder.

    Attributes:
        vae: the autoencoder.
        normalization: where its statistics are.
        patch: side of a latent pixel of the denoiser, in those of the autoencoder: 1, or 2 with patches.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        config = vae.config
        self.normalization: Normalization = "scaling_factor"
        if hasattr(vae, "bn"):
            self.normalization = "a batch norm"
        elif config.get("latents_mean") is not None and config.get("latents_std") is not None:
            self.normalization = "latents_mean and latents_std"
        self.patch: int = config.patch_size[0] if self.normalization == "a batch norm" else 1

    def encode_images(self, images: Tensor, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Return mean and std of the latents of images (N, 3, H, W) in [−1, 1], in float32 on the CPU: (N, C, h, w).

        AutoencoderKL returns a distribution, AutoencoderTiny a point: its std is zero. The device is the autoencoder's
        by default; a pipeline that offloads has it elsewhere.
        """
        pixels = images.to(device or self.vae.device, self.vae.dtype)
        encoded = self.vae.encode(pixels.unsqueeze(2) if self._takes_videos else pixels)
        if hasattr(encoded, "latent_dist"):
            mean, std = encoded.latent_dist.mean, encoded.latent_dist.std
        else:
            mean, std = encoded.latents, torch.zeros_like(encoded.latents)
        mean, std = (self._patches(part.float().cpu()) for part in (mean, std))
        scale, shift = self.statistics()
        return (mean - shift) * scale, std * scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Return the images (N, 3, H, W) of latents (N, C, h, w)."""
        scale, shift = (part.to(latents.device) if isinstance(part, Tensor) else part for part in self.statistics())
        decoded = self.vae.decode(self._without_patches(latents / scale + shift).to(self.vae.device)).sample
        return decoded.squeeze(2) if self._takes_videos else decoded

    def statistics(self) -> tuple[float | Tensor, float | Tensor]:
        """Return scale and shift, numbers or a row of channels (C, 1, 1)."""
        config = self.vae.config
        if self.normalization == "a batch norm":
            norm = self.vae.bn
            std = (norm.running_var.float().cpu() + config.batch_norm_eps).sqrt()
            return 1 / std.view(-1, 1, 1), norm.running_mean.float().cpu().view(-1, 1, 1)
        scale = config.get("scaling_factor") or 1.0
        if self.normalization == "scaling_factor":
            return scale, config.get("shift_factor") or 0.0
        mean, std = (torch.tensor(config[name]).view(-1, 1, 1) for name in ("latents_mean", "latents_std"))
        return scale / std, mean

    @property
    def _takes_videos(self) -> bool:
        return any(weight.dim() == 5 for weight in self.vae.parameters())

    def _patches(self, latents: Tensor) -> Tensor:
        """Turn an autoencoder's latents into those of the denoiser: without frames, in patches."""
        latents = latents.squeeze(2) if self._takes_videos else latents
        if self.patch == 1:
            return latents
        rows = latents.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        return rows.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)

    def _without_patches(self, latents: Tensor) -> Tensor:
        """Turn the denoiser's latents into those of the autoencoder: the inverse of :meth:`_patches`."""
        if self.patch > 1:
            channels = latents.unflatten(1, (-1, self.patch, self.patch))
            latents = channels.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
        return latents.unsqueeze(2) if self._takes_videos else latents
