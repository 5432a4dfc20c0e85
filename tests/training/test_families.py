"""Stable Diffusion as training sees it: its noise, its targets and its conditions are the model's own."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline

from hra_diffusion.errors import ModelError
from hra_diffusion.training.cache import encode
from hra_diffusion.training.config import ModelConfig
from hra_diffusion.training.families import load


def load_from(folder, **options):
    return load(ModelConfig(pretrained_model_name_or_path=str(folder)), **options)


def with_scheduler(folder, copy, **changes):
    """Copy a model with changes to its scheduler's config."""
    shutil.copytree(folder, copy)
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


@pytest.fixture(scope="module")
def family(tiny_sd):
    return load_from(tiny_sd)


@pytest.mark.parametrize(
    ("kind", "clean"),
    [
        ("epsilon", lambda x, target, a, s: (x - s * target) / a),
        ("v_prediction", lambda x, target, a, s: a * x - s * target),
        ("sample", lambda x, target, a, s: target),
    ],
)
def test_the_target_gives_the_clean_latent_back(tiny_sd, tmp_path, kind, clean):
    family = load_from(with_scheduler(tiny_sd, tmp_path / "model", prediction_type=kind))
    latents, noise = torch.randn(2, 3, 4, 8, 8).double()
    timesteps = torch.tensor([0, 400, 998])
    signal = family.scheduler.alphas_cumprod[timesteps].double().view(-1, 1, 1, 1)
    noisy, target = family.add_noise(latents, noise, timesteps), family.target(latents, noise, timesteps)
    assert torch.allclose(noisy, signal.sqrt() * latents + (1 - signal).sqrt() * noise, atol=1e-6)
    assert torch.allclose(clean(noisy, target, signal.sqrt(), (1 - signal).sqrt()), latents, atol=1e-4)


def test_zero_terminal_snr_reaches_pure_noise(tiny_sd_v):
    family = load_from(tiny_sd_v)
    latents, noise = torch.randn(2, 1, 4, 8, 8)
    last = torch.tensor([999])
    assert torch.allclose(family.add_noise(latents, noise, last), noise, atol=1e-5)
    assert torch.allclose(family.target(latents, noise, last), -latents, atol=1e-5)


def test_timesteps_are_uniform_over_all(family):
    timesteps = family.timesteps(20_000, torch.Generator().manual_seed(0))
    assert (timesteps.min(), timesteps.max()) == (0, 999)
    assert timesteps.float().mean().item() == pytest.approx(499.5, abs=8)


def test_prompts_are_encoded_as_the_pipeline_does(family):
    prompts = ["a photo of a sks dog", "a dog" * 40]
    ours = family.condition(prompts, text_encoder_trains=False)
    theirs, _ = family.pipe.encode_prompt(prompts, "cpu", 1, False)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_training_text_encoder_gives_the_prediction_of_a_resting_one(family):
    prompts = ["a sks dog", "a dog", "a sks dog"]
    noisy, timesteps = torch.randn(3, 4, 8, 8), torch.tensor([1, 500, 999])
    with torch.no_grad():
        rests, trains = (
            family.denoiser(trains)(noisy, timesteps, family.condition(prompts, trains)) for trains in (False, True)
        )
    assert torch.allclose(rests, trains, atol=1e-5)


def test_the_models_own_size_is_known(family):
    assert (family.resolution, family.resolution_step) == (32, 4)


def test_latents_are_the_autoencoders_scaled_for_the_denoiser(family):
    crops = [torch.rand(3, 32, 32) * 2 - 1 for _ in range(2)]
    (latent,) = encode(family.pipe.vae, [crops])
    with torch.no_grad():
        theirs = family.pipe.vae.encode(torch.stack(crops)).latent_dist
    noise = torch.randn(4, 8, 8)
    for crop in range(2):
        expected = (theirs.mean[crop] + theirs.std[crop] * noise) * family.pipe.vae.config.scaling_factor
        assert torch.allclose(latent.sample(crop, noise), expected, atol=1e-6)


def test_a_tiny_autoencoder_gives_latents_without_deviation(make_model, tmp_path):
    vae = load_from(make_model(tmp_path / "model", tiny_autoencoder=True)).pipe.vae
    crop = torch.rand(3, 32, 32) * 2 - 1
    (latent,) = encode(vae, [[crop]])
    with torch.no_grad():
        assert torch.allclose(latent.sample(0, torch.randn(4, 8, 8)), vae.encode(crop[None]).latents[0], atol=1e-6)


def test_what_is_no_model_is_refused_with_what_a_model_folder_holds(tmp_path):
    for name in (str(tmp_path), str(tmp_path / "nix"), "nobody/nothing", "no such name"):
        with pytest.raises(ModelError, match=r"is no model folder.*model_index\.json beside unet"):
            load_from(name)


def test_a_family_that_cannot_be_trained_is_named(tiny_sd, tmp_path):
    copy = shutil.copytree(tiny_sd, tmp_path / "model")
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "FluxPipeline"))
    with pytest.raises(ModelError, match="is a FluxPipeline, which cannot be trained here: use a model of StableDiff"):
        load_from(copy)


def test_an_unknown_prediction_type_is_refused(tiny_sd, tmp_path):
    with pytest.raises(ModelError, match="predicts 'velocity'"):
        load_from(with_scheduler(tiny_sd, tmp_path / "model", prediction_type="velocity"))


@pytest.mark.parametrize("damage", ["missing", "truncated", "pickled"])
def test_an_incomplete_or_damaged_model_is_refused(tiny_sd, tmp_path, damage):
    copy = shutil.copytree(tiny_sd, tmp_path / "model")
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    if damage == "truncated":
        weights.write_bytes(data[: len(data) // 2])
    if damage == "pickled":
        torch.save({}, weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_from(copy)


def test_half_precision_leaves_the_autoencoder_in_float32(tiny_sd):
    pipe = load_from(tiny_sd, dtype=torch.bfloat16).pipe
    assert (pipe.unet.dtype, pipe.text_encoder.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert isinstance(pipe, StableDiffusionPipeline)
