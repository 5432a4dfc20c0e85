"""A prompt for each region: its pixels read this prompt alone, encoded with the region's adapter."""

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from hra_diffusion import load_hra_weights, set_hra_adapters, using_hra_adapters
from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines import disable_hra
from hra_diffusion.pipelines.clip_skip import set_clip_skip
from tests.pipelines.conftest import UNET_FULL, load_kind, write_adapter

PROMPTS = {"left": "a sks dog", "right": "a hta cat"}
TRIGGERS = {"left": "sks dog", "right": "hta cat"}
LEFT, RIGHT = torch.zeros(32, 32), torch.zeros(32, 32)
LEFT[:, :16], RIGHT[:, 16:] = 1, 1
EVERYWHERE = torch.ones(32, 32)


def load_with_adapters(kind, model, folder):
    pipe = load_kind(kind, model)
    folders = [write_adapter(pipe, folder / name, unet=UNET_FULL, seed=seed) for seed, name in enumerate(PROMPTS)]
    for path in folders:
        load_hra_weights(pipe, path, path.name)
    set_clip_skip(pipe, None)  # else diffusers reads an attribute that text encoders of transformers 5 lack
    return pipe


@pytest.fixture(scope="module")
def pipe(tiny_sd, tmp_path_factory):
    return load_with_adapters(StableDiffusionPipeline, tiny_sd, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def pipe_xl(tiny_sdxl, tmp_path_factory):
    return load_with_adapters(StableDiffusionXLPipeline, tiny_sdxl, tmp_path_factory.mktemp("adapters"))


def generate(pipe, prompt, count=2, **options) -> torch.Tensor:
    """Images (count, channels, height, width) of 32 × 32 px."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(count)]
    options = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"} | options
    return pipe(prompt, generator=generators, num_images_per_prompt=count, **options).images


def regions(pipe, masks, strengths=1.0, **options):
    names = list(masks)
    prompts = {name: PROMPTS[name] for name in names}
    triggers = {name: TRIGGERS[name] for name in names}
    options = {"masks": masks, "prompts": prompts, "triggers": triggers} | options
    return using_hra_adapters(pipe, names, strengths, bind="region", **options)


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
def test_a_region_of_the_whole_image_is_its_prompt_with_the_adapter_alone(pipe, guidance_scale):
    options = {"guidance_scale": guidance_scale, "negative_prompt": "blurry", "clip_skip": 1}
    with using_hra_adapters(pipe, "left"):
        alone = generate(pipe, PROMPTS["left"], **options)
    with regions(pipe, {"left": EVERYWHERE}):
        image = generate(pipe, "a house", **options)
    with disable_hra(pipe):
        base = generate(pipe, "a house", **options)
    assert torch.allclose(image, alone, atol=1e-4)
    assert not torch.allclose(image, base, atol=1e-3)
    with disable_hra(pipe):  # nothing is left of the regions
        assert torch.equal(generate(pipe, "a house", **options), base)


def test_pixels_of_no_region_read_the_prompt_of_the_call(pipe):
    with disable_hra(pipe):
        base = generate(pipe, PROMPTS["left"])
    with regions(pipe, {"left": LEFT}, 0.0):
        image = generate(pipe, PROMPTS["left"])
        other = generate(pipe, "a house")
    assert torch.allclose(image, base, atol=1e-4)
    assert not torch.allclose(other, base, atol=1e-3)


def test_each_region_has_its_own_prompt(pipe):
    masks = {"left": LEFT, "right": RIGHT}
    with regions(pipe, masks):
        images = generate(pipe, "a house")
        assert torch.allclose(generate(pipe, "a tree", count=1), images[:1], atol=1e-4)  # no pixel reads it
    with regions(pipe, masks, prompts=PROMPTS | {"right": "a hta cat at night"}):
        other = generate(pipe, "a house")
    assert not torch.allclose(images, other, atol=1e-3)


def test_sdxl_has_regions_with_prompts(pipe_xl):
    with using_hra_adapters(pipe_xl, "left"):
        alone = generate(pipe_xl, PROMPTS["left"])
    with regions(pipe_xl, {"left": EVERYWHERE}):
        image = generate(pipe_xl, PROMPTS["left"])  # its pooled embedding is that of the call's prompt, without adapter
    assert image.shape == alone.shape
    assert not torch.equal(image, alone)
    with regions(pipe_xl, {"left": LEFT}, 0.0), disable_hra(pipe_xl):
        base = generate(pipe_xl, PROMPTS["left"])
    with regions(pipe_xl, {"left": LEFT}, 0.0):
        assert torch.allclose(generate(pipe_xl, PROMPTS["left"]), base, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"bind": "region"}, "give both or neither of left"),
        ({"bind": "region", "masks": {"left": LEFT}, "prompts": {"lft": "a sks dog"}}, "neither of left, lft"),
        ({"bind": "region", "masks": {"left": LEFT}, "prompts": {"left": "a dog"}}, "'left' lacks its trigger word"),
        ({"bind": None}, "prompts are for bound adapters"),
    ],
)
def test_prompts_of_no_use_are_refused(pipe, options, complaint):
    triggers = {"left": "sks dog"} if options["bind"] else None
    with pytest.raises(ConfigError, match=complaint):
        set_hra_adapters(pipe, "left", triggers=triggers, **{"prompts": {"left": "a sks dog"}} | options)


def test_several_negative_prompts_are_refused(pipe):
    with (
        regions(pipe, {"left": LEFT}),
        pytest.raises(ConfigError, match="need one negative prompt"),
    ):
        pipe(["a house"] * 2, negative_prompt=["red", "blue"], height=32, width=32, num_inference_steps=1)
