"""The autoencoder: 128 px images to 16 × 16 latents of 8 channels, trained on 64-px crops.

Loss: L1 of the pixels, L1 of their differences (edges), and a small KL that keeps latents near unit variance. The
posterior starts nearly without noise; started at unit variance, nothing is learned for hundreds of steps.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from hra_diffusion.formats.files import write_file

CROP = 64
_BATCH = 16
_KL_WEIGHT = 1e-3


def build() -> AutoencoderKL:
    """Build the untrained autoencoder, 4.3 M parameters."""
    channels = (16, 48, 96, 160)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=4,
        sample_size=128,
        mid_block_add_attention=False,
        scaling_factor=1.0,
        force_upcast=False,
    )
    quant = vae.quant_conv
    assert quant is not None and quant.bias is not None
    with torch.no_grad():
        quant.bias[8:] = -6.0
    return vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def loss_function(vae: AutoencoderKL, images: np.ndarray) -> Callable[[torch.Generator], Tensor]:
    """Return the loss on a batch of random crops of `images`, uint8 of shape (N, H, W, 3)."""

    def compute_loss(generator: torch.Generator) -> Tensor:
        crops = random_crops(images, generator)
        posterior = vae.encode(crops).latent_dist
        output = vae.decode(posterior.sample(generator)).sample
        edges = sum((output.diff(dim=axis) - crops.diff(dim=axis)).abs().mean() for axis in (2, 3))
        kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return (output - crops).abs().mean() + edges + _KL_WEIGHT * kl

    return compute_loss


def random_crops(images: np.ndarray, generator: torch.Generator) -> Tensor:
    """Return crops of random images: shape (16, 3, 64, 64), in −1 … 1."""
    top, left = torch.randint(images.shape[1] - CROP + 1, (2, _BATCH), generator=generator).tolist()
    index = torch.randint(len(images), (_BATCH,), generator=generator).tolist()
    crops = np.stack([images[i, y : y + CROP, x : x + CROP] for i, y, x in zip(index, top, left, strict=True)])
    return to_tensor(crops)


def to_tensor(images: np.ndarray) -> Tensor:
    """Convert uint8 (N, H, W, 3) to float32 (N, 3, H, W) in −1 … 1, channels last in memory."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def psnr(vae: AutoencoderKL, images: np.ndarray) -> float:
    """Return the mean peak signal-to-noise ratio in dB of reconstructions of `images`, uint8 (N, H, W, 3)."""
    values = []
    for start in range(0, len(images), 16):
        batch = to_tensor(images[start : start + 16])
        output = vae.decode(vae.encode(batch).latent_dist.mean).sample.clamp(-1, 1)
        values.append(10 * torch.log10(4 / (output - batch).square().mean((1, 2, 3))))
    return torch.cat(values).mean().item()


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: np.ndarray, path: Path) -> Tensor:
    """Return the posterior means of all images as float16 (N, 8, 16, 16), cached at `path`."""
    if path.exists():
        return torch.from_numpy(np.load(path))
    batches = (to_tensor(images[start : start + 32]) for start in range(0, len(images), 32))
    latents = torch.cat([vae.encode(batch).latent_dist.mean.half() for batch in batches])
    write_file(path, lambda file: np.save(file, latents.numpy()))
    return latents


@torch.no_grad()
def normalize_latents(vae: AutoencoderKL, images: np.ndarray) -> None:
    """Normalize every latent channel to mean 0 and variance 1 over `images`.

    An exact change of the two 1 × 1 convolutions: reconstructions do not change, and the scaling factor is 1.
    """
    before, after = vae.quant_conv, vae.post_quant_conv
    assert before is not None and before.bias is not None and after is not None and after.bias is not None
    batches = (to_tensor(images[start : start + 32]) for start in range(0, len(images), 32))
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in batches])
    mean, scale = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    channels = len(mean)
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= scale[None, :, None, None]
    before.weight[:channels] /= scale[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean) / scale
    before.bias[channels:] -= 2 * scale.log()
