import numpy as np
import torch

from emoji_world import autoencoder


def test_normalizing_the_latents_keeps_reconstructions_and_gives_unit_channels():
    torch.manual_seed(0)
    vae = autoencoder.build()
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    batch = autoencoder.to_tensor(images)
    with torch.no_grad():
        before = vae.decode(vae.encode(batch).latent_dist.mean).sample
        autoencoder.normalize_latents(vae, images)
        latents = vae.encode(batch).latent_dist.mean
        after = vae.decode(latents).sample
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(8), atol=1e-3, rtol=0)
