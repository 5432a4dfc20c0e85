"""Safety checkers: no command loads them, and an image that one has blackened is reported."""

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

from hra_diffusion import generate_image, load_pipeline
from hra_diffusion.cli.main import main
from hra_diffusion.pipelines import merge_hra
from hra_diffusion.training.config import ModelConfig
from hra_diffusion.training.families import load
from tests.pipelines.conftest import write_adapter


@pytest.fixture(scope="module")
def checked_sd(tiny_sd, tmp_path_factory):
    """A tiny Stable Diffusion with a checker that flags every image."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=sizes | {"vocab_size": 8}, vision_config=sizes | {"image_size": 32}, projection_dim=8)
    )
    torch.nn.init.constant_(checker.concept_embeds_weights, -2)
    components = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True).components
    extractor = CLIPImageProcessor(size=32, crop_size=32)
    folder = tmp_path_factory.mktemp("models") / "checked"
    parts = {**components, "safety_checker": checker, "feature_extractor": extractor}
    StableDiffusionPipeline(**parts).save_pretrained(folder)
    return folder


def test_training_and_generating_load_no_checker(checked_sd):
    for pipe in (load_pipeline(str(checked_sd)), load(ModelConfig(pretrained_model_name_or_path=str(checked_sd))).pipe):
        assert (pipe.safety_checker, pipe.feature_extractor) == (None, None)


def test_generate_writes_no_black_image(checked_sd, tmp_path, capsys):
    adapter = write_adapter(load_pipeline(str(checked_sd)), tmp_path / "adapter", base=str(checked_sd))
    flags = ["--num_inference_steps", "1", "--height", "32", "--width", "32", "--output_dir", str(tmp_path)]
    assert main(["generate", "--adapter", str(adapter), "--prompt", "a dog", *flags]) == 0
    assert np.asarray(Image.open(capsys.readouterr().out.strip())).any()


def test_a_blackened_image_is_reported(checked_sd, caplog):
    pipe = load_pipeline(str(checked_sd), safety_checker=True)
    image = generate_image(pipe, "a dog", 0, num_inference_steps=1, height=32, width=32)
    assert not np.asarray(image).any()
    assert "safety checker has replaced 1 of 1 images by black ones" in caplog.text


def test_a_given_checker_is_used(checked_sd):
    checker = StableDiffusionSafetyChecker.from_pretrained(checked_sd / "safety_checker")
    assert load_pipeline(str(checked_sd), safety_checker=checker).safety_checker is checker


def test_a_merged_model_keeps_its_checker(checked_sd, tmp_path):
    adapter = write_adapter(load_pipeline(str(checked_sd)), tmp_path / "adapter", base=str(checked_sd))
    merged = merge_hra({str(adapter): 1.0}, tmp_path / "merged", base=str(checked_sd))
    assert load_pipeline(str(merged), safety_checker=True).safety_checker is not None
