"""Previews of latents, and size and precision of a base, from the settings of model and adapters."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from hra_diffusion.formats.run_folder import BASE_FILE
from hra_diffusion.pipelines import load_base
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.generation.preview import Preview
from hra_diffusion.studio.engine.models.base import read_base
from hra_diffusion.studio.engine.models.model_worker import ModelWorker
from hra_diffusion.studio.engine.uploads import Uploads
from hra_diffusion.training.data.latents import encode
from hra_diffusion.training.families.latent_space import LatentSpace
from tests.models import make_autoencoder

NORMALIZATIONS = {
    "scale": {},
    "scale and shift": {"shift_factor": 0.3},
    "mean and std": {"latents_mean": [4.0, -3.0, 2.0, 1.0], "latents_std": [0.2, 5.0, 3.0, 0.5]},
}


def preview_of(vae, image: torch.Tensor) -> np.ndarray:
    (latent,) = encode(LatentSpace(vae), [[image]])
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


def test_images_on_a_gpu_have_the_precision_of_the_adapters_runs(tiny_sd, adapter_folders, tmp_path):
    base = read_base(str(tiny_sd))
    library = Library(tmp_path / "library")
    worker = ModelWorker(base, library, Uploads(tmp_path / "uploads"), mixed_precision="fp16")
    assert worker.recorded_base.mixed_precision == "fp16"  # of the training jobs: there is no adapter
    for name, precision in {"amber": "bf16", "birch": "bf16"}.items():
        copy = shutil.copytree(adapter_folders[name], tmp_path / name)
        (copy / BASE_FILE).write_text(json.dumps({"mixed_precision": precision}))
        library.add(copy, name)
        assert worker.recorded_base.mixed_precision == "bf16"
    pipe = load_base(worker.recorded_base, device="meta")  # stands for a GPU: weights are not computed with
    assert pipe.unet.dtype == torch.bfloat16
    library.add(adapter_folders["cedar"], "cedar")  # of a run in float32
    assert worker.recorded_base.mixed_precision == "fp16"
    worker.close()
