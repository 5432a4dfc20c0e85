"""Model families: noise, targets and conditioning equal those of the model's pipeline."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline

from hra_diffusion.errors import ConfigError, ModelError
from hra_diffusion.pipelines.kinds import default_size, size_multiple
from hra_diffusion.training.config import ModelConfig
from hra_diffusion.training.data.buckets import checked_resolution
from hra_diffusion.training.data.latents import encode
from hra_diffusion.training.families import load
from hra_diffusion.training.objective.noising import noise_process


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


@pytest.fixture(scope="module", params=["tiny_sd", "tiny_sdxl", "tiny_sd3"])
def any_family(request):
    """One model of each family."""
    return load_from(request.getfixturevalue(request.param))


def test_the_denoiser_is_called_as_the_pipeline_calls_it(any_family):
    pipe, calls = any_family.pipe, []
    denoiser = getattr(pipe, any_family.denoiser_name)
    hook = denoiser.register_forward_hook(
        lambda module, args, kwargs, out: calls.append((args, kwargs, out[0])), with_kwargs=True
    )
    options = {"num_inference_steps": 1, "guidance_scale": 1.0, "height": 32, "width": 32, "output_type": "latent"}
    pipe("a photo of a sks dog", generator=torch.Generator().manual_seed(0), **options)
    hook.remove()
    ((args, kwargs, theirs),) = calls
    noisy = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    timestep = kwargs["timestep"] if "timestep" in kwargs else args[1]
    conditioning = any_family.encode_prompts(["a photo of a sks dog"], False)
    conditioning["sizes"] = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
    with torch.no_grad():
        ours = any_family.denoiser(False)(noisy, timestep.expand(1), conditioning)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_long_prompts_are_truncated_as_in_the_pipeline(family):
    prompts = ["a photo of a sks dog", "a dog" * 40]
    theirs, _ = family.pipe.encode_prompt(prompts, "cpu", 1, False)
    assert torch.allclose(family.encode_prompts(prompts, text_encoder_trains=False)["prompt"], theirs, atol=1e-6)


def test_predictions_are_the_same_with_trained_and_frozen_text_encoders(any_family):
    prompts = ["a sks dog", "a dog", "a sks dog"]
    noisy, timesteps = torch.randn(3, 4, 8, 8), torch.tensor([1, 500, 999])
    sizes = {"sizes": torch.tensor([32.0, 32, 0, 0, 32, 32]).expand(3, 6)}
    with torch.no_grad():
        frozen, trained = (
            any_family.denoiser(trained)(noisy, timesteps, any_family.encode_prompts(prompts, trained) | sizes)
            for trained in (False, True)
        )
    assert torch.allclose(frozen, trained, atol=1e-5)


def test_sdxls_prediction_depends_on_image_sizes_and_crops(tiny_sdxl):
    denoiser = load_from(tiny_sdxl).denoiser(True)
    noisy, timesteps = torch.randn(1, 4, 8, 8), torch.tensor([500])
    conditioning = denoiser.family.encode_prompts(["a dog"], True)
    with torch.no_grad():
        whole, cut = (
            denoiser(noisy, timesteps, conditioning | {"sizes": torch.tensor([[512.0, 512, 0, left, 32, 32]])})
            for left in (0, 16)
        )
    assert not torch.allclose(whole, cut)


def test_sd3_works_without_t5(tiny_sd3, tmp_path):
    copy = shutil.copytree(tiny_sd3, tmp_path / "model")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(
        json.dumps(index | {"text_encoder_3": [None] * 2, "tokenizer_3": [None] * 2})
    )
    family = load_from(copy)
    assert family.pipe.text_encoder_3 is None
    theirs, *_ = family.pipe.encode_prompt("a dog", None, None, do_classifier_free_guidance=False)
    assert (
        theirs.shape[1] - family.pipe.tokenizer.model_max_length
        == family.encode_prompts(["a dog"], True)["t5"].shape[1]
    )


def test_another_autoencoder_replaces_the_models(tiny_sd, make_model, tmp_path):
    other = make_model(tmp_path / "other", tiny_autoencoder=True) / "vae"
    model = ModelConfig(pretrained_model_name_or_path=str(tiny_sd), pretrained_vae_model_name_or_path=str(other))
    assert type(load(model).pipe.vae) is AutoencoderTiny
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(ModelConfig(pretrained_model_name_or_path=str(tiny_sd), pretrained_vae_model_name_or_path="nix"))


@pytest.mark.parametrize("kind", ["DDIMScheduler", "PNDMScheduler"])
def test_zero_terminal_snr_is_set_for_v_prediction_and_refused_for_other_types(tiny_sd, tiny_sd3, tmp_path, kind):
    copy = with_scheduler(tiny_sd, tmp_path / "model", prediction_type="v_prediction")
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", kind))
    model = ModelConfig(pretrained_model_name_or_path=str(copy), rescale_betas_zero_snr=True)
    family = load(model)
    latents, noise = torch.randn(2, 1, 4, 8, 8)
    assert torch.allclose(
        noise_process(family.pipe.scheduler).add_noise(latents, noise, torch.tensor([999])), noise, atol=1e-5
    )
    family.pipe.scheduler.set_timesteps(10)
    assert family.pipe.scheduler.timesteps[0] == 999
    for model in (tiny_sd, tiny_sd3):
        with pytest.raises(ModelError, match=r"--rescale_betas_zero_snr is for models that predict v.*(epsilon|flow)"):
            load(ModelConfig(pretrained_model_name_or_path=str(model), rescale_betas_zero_snr=True))


def test_the_autoencoder_computes_in_float32_in_half_precision_too(tiny_sdxl):
    family = load_from(tiny_sdxl, dtype=torch.bfloat16)
    pipe = family.pipe
    assert {pipe.unet.dtype, pipe.text_encoder.dtype, pipe.text_encoder_2.dtype} == {torch.bfloat16}
    assert pipe.vae.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        image = pipe.vae.decode(torch.randn(1, 4, 8, 8).bfloat16()).sample
    assert image.dtype == torch.float32


def test_the_default_size_is_read_from_the_model(family):
    assert (default_size(family.pipe), size_multiple(family.pipe)) == (32, 4)


def test_a_model_without_a_sample_size_needs_a_resolution(tiny_sd):
    pipe = load_from(tiny_sd).pipe
    pipe.unet.register_to_config(sample_size=None)
    family = type(load_from(tiny_sd))(pipe)
    assert checked_resolution(32, family.pipe) == 32
    with pytest.raises(ConfigError, match="--resolution"):
        checked_resolution(None, family.pipe)


def test_latents_are_the_autoencoders_times_the_scaling_factor(family):
    views = [torch.rand(3, 32, 32) * 2 - 1 for _ in range(2)]
    (latent,) = encode(family.latent_space, [views])
    with torch.no_grad():
        theirs = family.pipe.vae.encode(torch.stack(views)).latent_dist
    noise = torch.randn(4, 8, 8)
    for view in range(2):
        expected = (theirs.mean[view] + theirs.std[view] * noise) * family.pipe.vae.config.scaling_factor
        assert torch.allclose(latent.sample(view, noise), expected, atol=1e-6)


def test_latents_are_shifted_by_the_shift_factor(tiny_sd3):
    latent_space = load_from(tiny_sd3).latent_space
    vae = latent_space.vae
    view = torch.rand(3, 32, 32) * 2 - 1
    (latent,) = encode(latent_space, [[view]])
    with torch.no_grad():
        theirs = vae.encode(view[None]).latent_dist
    assert torch.allclose(latent.mean, (theirs.mean - 0.06) * vae.config.scaling_factor, atol=1e-6)


def test_a_tiny_autoencoder_gives_latents_without_noise(make_model, tmp_path):
    latent_space = load_from(make_model(tmp_path / "model", tiny_autoencoder=True)).latent_space
    vae = latent_space.vae
    view = torch.rand(3, 32, 32) * 2 - 1
    (latent,) = encode(latent_space, [[view]])
    with torch.no_grad():
        assert torch.allclose(latent.sample(0, torch.randn(4, 8, 8)), vae.encode(view[None]).latents[0], atol=1e-6)


def test_a_missing_model_is_refused_with_a_description_of_model_folders(tmp_path):
    for name in (str(tmp_path), str(tmp_path / "nix"), "nobody/nothing", "no such name"):
        with pytest.raises(ModelError, match=r"is no model folder.*model_index\.json beside unet"):
            load_from(name)


def test_an_unsupported_family_is_refused_by_name(tiny_sd, tmp_path):
    copy = shutil.copytree(tiny_sd, tmp_path / "model")
    index = copy / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "SanaPipeline"))
    with pytest.raises(ModelError, match="is a SanaPipeline, which cannot be trained here: use a model of StableDiff"):
        load_from(copy)


def test_an_unknown_prediction_type_is_refused(tiny_sd, tmp_path):
    with pytest.raises(ModelError, match="predicts 'velocity'"):
        noise_process(load_from(with_scheduler(tiny_sd, tmp_path / "model", prediction_type="velocity")).pipe.scheduler)


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
