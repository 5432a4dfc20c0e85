"""What a base model is: its prediction type, autoencoder, channels and files, right or refused in one sentence."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from diffusers import DDIMScheduler

from hra_diffusion.errors import ConfigError, ModelError
from hra_diffusion.pipelines import load_pipeline
from hra_diffusion.pipelines.kinds import default_size
from hra_diffusion.studio.engine.models.base import read_base
from hra_diffusion.training.config import ModelConfig
from hra_diffusion.training.data.buckets import checked_resolution
from hra_diffusion.training.data.latents import encode
from hra_diffusion.training.devices.unseen import warn_of_unseen_gpu
from hra_diffusion.training.families import load
from hra_diffusion.training.families.description import describe_model, device_name
from hra_diffusion.training.objective.noising import noise_process
from tests.models import make_unet


def changed(folder, copy, file, **changes):
    """Copy a model with changes to one of its JSON files."""
    shutil.copytree(folder, copy)
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


def load_from(folder, **settings):
    return load(ModelConfig(pretrained_model_name_or_path=str(folder), **settings))


def test_the_flag_prediction_type_overrides_the_schedulers(tiny_sd, tiny_sd3):
    family = load_from(tiny_sd, prediction_type="v_prediction")
    assert noise_process(family.pipe.scheduler).prediction == "v_prediction"
    assert type(family.pipe.scheduler) is DDIMScheduler
    family = load_from(tiny_sd, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert family.pipe.scheduler.config.rescale_betas_zero_snr
    with pytest.raises(ConfigError, match=r"--prediction_type is epsilon, and .* is a flow-matching model"):
        load_from(tiny_sd3, prediction_type="epsilon")


def test_the_first_line_names_family_prediction_size_precision_and_device(tiny_sd, tiny_sd_v, tiny_sdxl, tiny_sd3):
    lines = []
    for folder in (tiny_sd, tiny_sd_v, tiny_sdxl, tiny_sd3):
        family = load_from(folder)
        lines.append(describe_model(family, noise_process(family.pipe.scheduler), torch.device("cpu"), None))
    assert lines == [
        "model: Stable Diffusion 1, ε-prediction, made for 32 px, float32, on cpu",
        "model: Stable Diffusion 1, v-prediction, zero terminal SNR, made for 32 px, float32, on cpu",
        "model: Stable Diffusion XL, ε-prediction, made for 32 px, float32, on cpu",
        "model: Stable Diffusion 3, flow, made for 32 px, float32, on cpu",
    ]


def test_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"NVIDIA {index}")
    assert device_name(torch.device("cuda")) == "cuda:1, NVIDIA 1"
    assert device_name(torch.device("cuda:0")) == "cuda:0, NVIDIA 0"


@pytest.mark.parametrize(("name", "cuda", "expected"), [("nvidia0", None, "without CUDA"), ("nvidia1", "12.8", "12.8")])
def test_a_gpu_that_torch_cannot_use_is_reported(tmp_path, monkeypatch, caplog, name, cuda, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    warn_of_unseen_gpu(torch.device("cpu"), tmp_path)
    assert not caplog.records
    (tmp_path / name).touch()
    warn_of_unseen_gpu(torch.device("cuda"), tmp_path)
    assert not caplog.records
    warn_of_unseen_gpu(torch.device("cpu"), tmp_path)
    assert "There is an NVIDIA GPU" in caplog.text and expected in caplog.text
    assert "hra-diffusion doctor" in caplog.text
    caplog.clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    warn_of_unseen_gpu(torch.device("cpu"), tmp_path)
    assert not caplog.records


def test_latents_are_normalized_by_the_mean_and_std_of_the_autoencoders_channels(tiny_sdxl, tiny_sd, tmp_path):
    mean, std = [0.1, -0.2, 0.3, 0.4], [2.0, 3.0, 4.0, 5.0]
    names = {"latents_mean": mean, "latents_std": std, "scaling_factor": 0.5}
    family = load_from(changed(tiny_sdxl, tmp_path / "xl", "vae/config.json", **names))
    image = torch.rand(3, 32, 32) * 2 - 1
    (latent,) = encode(family.latent_space, [[image]])
    with torch.no_grad():
        theirs = family.pipe.vae.encode(image[None]).latent_dist
    mean, std = torch.tensor(mean).view(1, 4, 1, 1), torch.tensor(std).view(1, 4, 1, 1)
    assert torch.allclose(latent.mean * std / 0.5 + mean, theirs.mean, atol=1e-6)  # as SDXL's pipeline decodes
    assert torch.allclose(latent.std * std / 0.5, theirs.std, atol=1e-6)
    with pytest.raises(ModelError, match=r"has latents_mean .* which a StableDiffusionPipeline ignores"):
        load_from(changed(tiny_sd, tmp_path / "sd", "vae/config.json", **names))


def test_another_scaling_factor_of_another_autoencoder_is_reported(tiny_sd, tmp_path, caplog):
    same = changed(tiny_sd, tmp_path / "same", "vae/config.json")
    other = changed(tiny_sd, tmp_path / "other", "vae/config.json", scaling_factor=0.13025)
    load_pipeline(str(tiny_sd), vae=str(same))
    assert "scaling_factor" not in caplog.text
    load_pipeline(str(tiny_sd), vae=str(other))
    assert "has the scaling_factor 0.13025, and the model's own has 0.18215" in caplog.text


def pickle_weights(folder: Path) -> Path:
    """Rename the weight files below a folder as if they were pickled; return the folder."""
    for weights in folder.rglob("*.safetensors"):
        weights.rename(weights.with_suffix(".bin"))
    return folder


def save_in_hub_cache(folder: Path, name: str, cache: Path) -> None:
    """Copy a model into a cache in the layout of huggingface_hub, as its branch main."""
    repository, commit = cache / f"models--{name.replace('/', '--')}", "0" * 40
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)


def test_pickled_weights_are_refused_with_the_reason_and_the_remedy(tiny_sd, tmp_path):
    copy = pickle_weights(shutil.copytree(tiny_sd, tmp_path / "model"))
    reason = r"text_encoder, unet, vae are in \.bin files alone.*use_safetensors=False"
    with pytest.raises(ModelError, match=reason):
        load_pipeline(str(copy))
    with pytest.raises(ModelError, match=reason):
        read_base(str(copy))
    vae = pickle_weights(shutil.copytree(tiny_sd / "vae", tmp_path / "vae"))
    (vae / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=r"the weights are in \.bin files alone.*use_safetensors=False"):
        load_pipeline(str(tiny_sd), vae=str(vae))


def test_pickled_weights_of_the_hub_are_refused_with_the_reason_and_the_remedy(tiny_sd, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    save_in_hub_cache(tiny_sd, "someone/sd", tmp_path / "hub")
    assert load_pipeline("someone/sd").unet
    save_in_hub_cache(pickle_weights(shutil.copytree(tiny_sd, tmp_path / "model")), "someone/old", tmp_path / "hub")
    with pytest.raises(ModelError, match=r"unet, vae are in \.bin files alone.*use_safetensors=False"):
        load_pipeline("someone/old")
    save_in_hub_cache(tmp_path / "model" / "vae", "someone/old-vae", tmp_path / "hub")
    with pytest.raises(ModelError, match=r"'someone/old-vae'.* the weights are in \.bin files alone"):
        load_pipeline("someone/sd", vae="someone/old-vae")


def test_an_inpainting_model_is_refused(tiny_sd, tmp_path):
    copy = shutil.copytree(tiny_sd, tmp_path / "model")
    make_unet(in_channels=9).save_pretrained(copy / "unet")
    with pytest.raises(ModelError, match="is an inpainting model: its unet takes 9 channels, of which 4 are the lat"):
        load_from(copy)
    make_unet(in_channels=16).save_pretrained(copy / "unet")
    with pytest.raises(ModelError, match="takes latents of 16 channels, and the autoencoder gives 4"):
        load_from(copy)


def test_a_tokenizer_without_a_maximum_length_gets_that_of_its_text_encoder(tiny_sd, tmp_path):
    copy = changed(tiny_sd, tmp_path / "model", "tokenizer/tokenizer_config.json", model_max_length=10**30)
    family = load_from(copy)
    assert family.pipe.tokenizer.model_max_length == 40
    prompts = ["a dog", "a dog" * 40]
    expected = load_from(tiny_sd).encode_prompts(prompts, False)["prompt"]
    assert torch.equal(family.encode_prompts(prompts, False)["prompt"], expected)


def test_a_pair_of_sizes_is_a_default_size_if_both_are_equal(tiny_sd, tmp_path):
    pipe = load_from(changed(tiny_sd, tmp_path / "square", "unet/config.json", sample_size=[8, 8])).pipe
    assert default_size(pipe) == checked_resolution(None, pipe) == 32
    pipe = load_from(changed(tiny_sd, tmp_path / "wide", "unet/config.json", sample_size=[8, 16])).pipe
    with pytest.raises(ConfigError, match="has no default resolution: give one with --resolution"):
        checked_resolution(None, pipe)
