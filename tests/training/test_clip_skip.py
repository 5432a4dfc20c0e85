"""Clip skip: training, pipelines and the command line encode prompts alike, as diffusers does."""

import pytest
import torch
from PIL import Image

from hra_diffusion.cli.main import main
from hra_diffusion.cli.train import parse_config
from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines import generate_image, load_hra_weights, load_pipeline
from hra_diffusion.pipelines.clip_skip import default_clip_skip
from hra_diffusion.pipelines.models import image_name
from hra_diffusion.training.config import ModelConfig
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.families import load
from hra_diffusion.training.prepare import prepare_run

PROMPTS = ["a photo of a sks dog", "a cat"]
SMALL = {"height": 32, "width": 32, "num_inference_steps": 1}


def theirs(pipe, clip_skip: int) -> torch.Tensor:
    """Return diffusers' prompt embeddings."""
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    return pipe.encode_prompt(PROMPTS, clip_skip=clip_skip, **options)[0]


@pytest.mark.parametrize(("model", "clip_skip"), [("tiny_sd", 0), ("tiny_sd", 1), ("tiny_sdxl", 0), ("tiny_sdxl", 1)])
def test_training_encodes_prompts_as_the_pipeline_does(request, model, clip_skip):
    folder = str(request.getfixturevalue(model))
    family = load(ModelConfig(pretrained_model_name_or_path=folder, clip_skip=clip_skip))
    expected = theirs(load_pipeline(folder), clip_skip)
    assert torch.allclose(family.encode_prompts(PROMPTS, False)["prompt"], expected, atol=1e-6)
    tokens = family.encode_prompts(PROMPTS, True)
    assert torch.allclose(family.encode_tokens(tokens)["prompt"], expected, atol=1e-6)
    assert torch.equal(expected, theirs(load_pipeline(folder), 1)) == (clip_skip == 1)


def test_a_pipeline_has_the_default_of_its_options(tiny_sd):
    plain, skipping = load_pipeline(str(tiny_sd)), load_pipeline(str(tiny_sd), clip_skip=1)
    assert (default_clip_skip(plain), default_clip_skip(skipping)) == (None, 1)
    image = generate_image(skipping, PROMPTS[0], 1, **SMALL)
    assert image == generate_image(plain, PROMPTS[0], 1, clip_skip=1, **SMALL)
    assert image != generate_image(plain, PROMPTS[0], 1, **SMALL)
    assert generate_image(skipping, PROMPTS[0], 1, clip_skip=0, **SMALL) == generate_image(
        plain, PROMPTS[0], 1, clip_skip=0, **SMALL
    )


def test_layers_that_prompts_skip_are_not_adapted(tiny_sd):
    family = load(ModelConfig(pretrained_model_name_or_path=str(tiny_sd), clip_skip=1))
    assert family.excluded_modules("unet") is None
    assert family.excluded_modules("text_encoder") == r"(.*\.)?layers\.1\..*"


def test_more_layers_than_there_are_are_refused(tiny_sd):
    with pytest.raises(ConfigError, match="--clip_skip is 9, and the text encoders have 2 layers: give a number"):
        load_pipeline(str(tiny_sd), clip_skip=9)


@pytest.mark.usefixtures("fresh_accelerate")
def test_generate_uses_the_clip_skip_of_the_training_run(tiny_sd, images, tmp_path):
    folder = tmp_path / "run"
    flags = ["--pretrained_model_name_or_path", str(tiny_sd), "--instance_data_dir", str(images), "--clip_skip", "1"]
    flags += [
        "--output_dir",
        str(folder),
        "--max_train_steps",
        "1",
        "--num_inference_steps",
        "1",
        "--report_to",
        "none",
    ]
    run = prepare_run(DreamBooth(parse_config([*flags, "--resolution", "32", "--instance_prompt", PROMPTS[0]])))
    list(run.steps())
    run.save()
    pipe = load_pipeline(str(tiny_sd))
    load_hra_weights(pipe, folder)
    options = {"num_inference_steps": 1, "height": 32, "width": 32}
    for given, clip_skip in (([], 1), (["--clip_skip", "0"], 0)):
        arguments = ["--adapter", str(folder), "--prompt", PROMPTS[1], "--output_dir", str(tmp_path), *given]
        assert main(["generate", *arguments]) == 0
        with Image.open(tmp_path / image_name(PROMPTS[1], 0)) as generated:
            expected = generate_image(pipe, PROMPTS[1], 0, clip_skip=clip_skip, **options)
            assert generated.tobytes() == expected.tobytes()
