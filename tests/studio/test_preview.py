"""Previews of latents, and the size of a base, from the model's settings."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hra_diffusion.studio.engine.base import read_base
from hra_diffusion.studio.engine.preview import Preview
from hra_diffusion.training.data.latents import encode
from tests.models import make_autoencoder

NORMALIZATIONS = {
    "scale": {},
    "scale and shift": {"shift_factor": 0.3},
    "mean and std": {"latents_mean": [4.0, -3.0, 2.0, 1.0], "latents_std": [0.2, 5.0, 3.0, 0.5]},
}


def preview_of(vae, image: torch.Tensor) -> np.ndarray:
    (latent,) = encode(vae, [[image]])
    file = Preview(vae, torch.device("cpu"))(latent.mean)
    return np.asarray(Image.open(io.BytesIO(file)), dtype=float)


@pytest.mark.parametrize("settings", NORMALIZATIONS.values(), ids=NORMALIZATIONS)
def test_a_preview_does_not_depend_on_the_normalization_of_the_latents(settings):
    torch.manual_seed(0)
    vae = make_autoencoder()
    image = torch.rand(3, 64, 64) * 2 - 1
    expected = preview_of(vae, image)
    vae.register_to_config(**settings)
    assert np.abs(preview_of(vae, image) - expected).max() <= 2


@pytest.mark.parametrize(("sample_size", "size"), [(8, 32), ([8, 8], 32), ([16, 8], 32)])
def test_the_size_of_a_base_may_be_a_pair(tiny_sd, tmp_path, sample_size, size):
    copy = shutil.copytree(tiny_sd, tmp_path / "sd")
    path = copy / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sample_size": sample_size}))
    assert read_base(str(copy)).size == size
