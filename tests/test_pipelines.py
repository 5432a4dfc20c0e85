"""Adapters in pipelines: in and out without a trace, all components or none."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.pipelines import (
    adapted_components,
    base_model,
    draw,
    hra_disabled,
    load_hra_weights,
    load_pipeline,
    unload_hra_weights,
)

PROMPT = "a photo of a sks dog"
OPTIONS = {"num_inference_steps": 2, "output_type": "np"}


@pytest.fixture
def pipe(tiny_sd):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def same(one, other) -> bool:
    return bool((one == other).all())


def test_an_adapter_changes_the_picture_and_unloading_gives_the_base_back(pipe, trained):
    components, before = dict(pipe.components), draw(pipe, PROMPT, 0, **OPTIONS)
    load_hra_weights(pipe, trained / "adapter")
    assert list(adapted_components(pipe)) == ["text_encoder", "unet"]
    assert not same(draw(pipe, PROMPT, 0, **OPTIONS), before)
    unload_hra_weights(pipe)
    assert all(pipe.components[name] is component for name, component in components.items())
    assert same(draw(pipe, PROMPT, 0, **OPTIONS), before)


def test_disabled_the_pipeline_is_its_base_within_the_block_only(pipe, trained):
    before = draw(pipe, PROMPT, 0, **OPTIONS)
    load_hra_weights(pipe, trained)
    adapted = draw(pipe, PROMPT, 0, **OPTIONS)
    with hra_disabled(pipe):
        assert same(draw(pipe, PROMPT, 0, **OPTIONS), before)
    assert same(draw(pipe, PROMPT, 0, **OPTIONS), adapted)


def test_the_same_seed_gives_the_same_picture_whatever_was_drawn_before(pipe):
    first = draw(pipe, PROMPT, 7, **OPTIONS)
    torch.rand(5)
    draw(pipe, PROMPT, 8, **OPTIONS)
    assert same(draw(pipe, PROMPT, 7, **OPTIONS), first)
    assert not same(draw(pipe, PROMPT, 8, **OPTIONS), first)


@pytest.mark.parametrize("damage", ["truncated", "missing", "other model"])
def test_a_damaged_component_leaves_the_pipeline_as_it_was(pipe, trained, tmp_path, damage):
    copy = shutil.copytree(trained / "adapter", tmp_path / "adapter")
    weights = copy / "unet" / "adapter_model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "missing":
        weights.unlink()
    else:
        shutil.copy(copy / "text_encoder" / weights.name, weights)
    components = dict(pipe.components)
    with pytest.raises(AdapterFileError):
        load_hra_weights(pipe, copy)
    assert all(pipe.components[name] is component for name, component in components.items())
    assert not [name for name, _ in pipe.text_encoder.named_parameters() if "hra" in name]


def test_an_adapter_for_a_component_the_pipeline_lacks_is_refused(pipe, trained, tmp_path):
    copy = shutil.copytree(trained / "adapter", tmp_path / "adapter")
    (copy / "unet").rename(copy / "transformer")
    with pytest.raises(AdapterFileError, match="the StableDiffusionPipeline has no transformer"):
        load_hra_weights(pipe, copy)
    assert adapted_components(pipe) == {}


def test_a_second_adapter_has_to_wait_for_the_first_to_leave(pipe, trained):
    load_hra_weights(pipe, trained)
    with pytest.raises(AdapterFileError, match="call unload_hra_weights first"):
        load_hra_weights(pipe, trained)


def test_a_folder_without_an_adapter_is_refused_with_what_one_holds(pipe, tmp_path):
    with pytest.raises(AdapterFileError, match=r"no adapter in .*one sub-folder for each adapted component"):
        load_hra_weights(pipe, tmp_path)


def test_a_model_stored_in_half_precision_draws_in_float32(make_model, tmp_path):
    pipe = load_pipeline(str(make_model(tmp_path / "half", half=True)))
    assert {pipe.unet.dtype, pipe.text_encoder.dtype, pipe.vae.dtype} == {torch.float32}
    assert draw(pipe, PROMPT, 0, **OPTIONS).shape == (32, 32, 3)


def test_an_adapter_knows_its_base_model(trained, tiny_sd):
    assert base_model(trained) == base_model(trained / "adapter") == str(tiny_sd)
