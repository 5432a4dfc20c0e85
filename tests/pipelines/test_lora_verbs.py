"""diffusers' methods for LoRAs, and LoRAs beside adapters."""

import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file

from hra_diffusion import (
    export_lora,
    fuse_hra,
    list_hra_adapters,
    load_hra_weights,
    set_hra_adapters,
    unfuse_hra,
    unload_hra_weights,
)
from hra_diffusion.errors import ConfigError, MergeError
from hra_diffusion.pipelines.components import base_files_of, set_base_options


def close(one, other, tolerance: float = 1e-4) -> bool:
    return torch.allclose(one, other, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def lora(tiny_sd, adapters, load, tmp_path_factory):
    """A LoRA of linear layers, and of 1 × 1 and 3 × 3 convolutions."""
    file = tmp_path_factory.mktemp("loras") / "lora.safetensors"
    pipe = load(StableDiffusionPipeline, tiny_sd)
    return export_lora(adapters / "conv", file, base=pipe, layout="diffusers", dtype="fp32")


@pytest.mark.parametrize("adapter", ["a", "conv"])
def test_a_lora_and_an_adapter_give_the_same_in_both_orders(pipe, tiny_sd, adapters, lora, image, load, adapter):
    base = image(pipe)
    pipe.load_lora_weights(lora.parent, adapter_name="lora", weight_name=lora.name)
    lora_alone = image(pipe)
    load_hra_weights(pipe, adapters / adapter, "mine")
    both = image(pipe)
    other = load(StableDiffusionPipeline, tiny_sd)
    load_hra_weights(other, adapters / adapter, "mine")
    adapter_alone = image(other)
    other.load_lora_weights(lora.parent, adapter_name="lora", weight_name=lora.name)
    assert close(image(other), both)
    assert not close(both, lora_alone, 1e-3)
    assert not close(both, adapter_alone, 1e-3)
    for each in (pipe, other):
        each.set_adapters("lora", 0.0)
        assert close(image(each), adapter_alone)
        each.set_adapters("lora", 1.0)
        set_hra_adapters(each, "mine", 0.0)
        assert close(image(each), lora_alone)
        set_hra_adapters(each, "mine", 1.0)
        assert close(image(each), both)
        with pytest.raises(MergeError, match="Remove the other adapter"):
            fuse_hra(each)
    pipe.unload_lora_weights()
    assert torch.equal(image(pipe), adapter_alone)
    unload_hra_weights(other)
    assert torch.equal(image(other), lora_alone)
    unload_hra_weights(pipe)
    other.unload_lora_weights()
    assert torch.equal(image(pipe), base)
    assert torch.equal(image(other), base)


def test_no_lora_is_loaded_beneath_fused_adapters(pipe, adapters, lora, image):
    load_hra_weights(pipe, adapters / "a")
    before = image(pipe)
    fuse_hra(pipe)
    with pytest.raises(ConfigError, match="unfuse them first"):
        pipe.load_lora_weights(lora.parent, weight_name=lora.name)
    unfuse_hra(pipe)
    assert torch.equal(image(pipe), before)


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (lambda pipe: pipe.set_adapters("mine", 0.1), "set_hra_adapters"),
        (lambda pipe: pipe.set_adapters(adapter_names=["mine"]), "set_hra_adapters"),
        (lambda pipe: pipe.delete_adapters("mine"), "unload_hra_weights"),
        (lambda pipe: pipe.fuse_lora(), "fuse_hra"),
        (lambda pipe: pipe.unfuse_lora(), "unfuse_hra"),
        (lambda pipe: pipe.disable_lora(), "disable_hra"),
        (lambda pipe: pipe.enable_lora(), "set_hra_adapters"),
        (lambda pipe: pipe.encode_prompt("a dog", "cpu", 1, False, lora_scale=0.1), "using_hra_adapters"),
        (lambda pipe: pipe("a dog", cross_attention_kwargs={"scale": 0.1}), "using_hra_adapters"),
    ],
)
def test_methods_for_loras_are_refused_without_loras_and_change_nothing(pipe, adapters, image, call, instead):
    load_hra_weights(pipe, adapters / "a", "mine")
    before, listed = image(pipe), list_hra_adapters(pipe)
    with pytest.raises(ConfigError, match=instead):
        call(pipe)
    assert list_hra_adapters(pipe) == listed
    assert torch.equal(image(pipe), before)


def test_methods_for_loras_act_on_the_loras_beside_an_adapter(pipe, adapters, lora, image):
    load_hra_weights(pipe, adapters / "a", "mine")
    alone = image(pipe)
    pipe.load_lora_weights(lora.parent, adapter_name="lora", weight_name=lora.name)
    both = image(pipe)
    assert pipe.get_list_adapters() == {"unet": ["lora", "mine"], "text_encoder": ["lora", "mine"]}
    assert pipe.get_active_adapters() == ["lora", "mine"]
    with pytest.raises(ConfigError, match="'mine' is an HRA adapter: use set_hra_adapters"):
        pipe.set_adapters(["lora", "mine"], [1.0, 0.5])
    pipe.disable_lora()
    assert close(image(pipe), alone)
    pipe.enable_lora()
    assert close(image(pipe), both)
    pipe.fuse_lora()
    assert close(image(pipe), both)
    pipe.unfuse_lora()
    assert close(image(pipe), both)
    half = image(pipe, cross_attention_kwargs={"scale": 0.5})
    assert not close(half, both, 1e-3)
    pipe.set_adapters("lora", 0.5)
    assert close(image(pipe), half)
    pipe.delete_adapters("lora")
    assert close(image(pipe), alone)
    assert list(list_hra_adapters(pipe)) == ["mine"]


KINDS = (StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPAGPipeline)


@pytest.mark.parametrize("kind", KINDS)
def test_from_pipe_shares_the_adapters_of_a_pipeline(pipe, adapters, image, kind):
    set_base_options(pipe, {"variant": "fp16"})
    load_hra_weights(pipe, adapters / "a", "mine")
    adapted = image(pipe)
    shared = kind.from_pipe(pipe)
    assert list_hra_adapters(shared) == list_hra_adapters(pipe)
    back = StableDiffusionPipeline.from_pipe(shared)
    assert base_files_of(back) == base_files_of(pipe) != {}
    assert torch.equal(image(back), adapted)
    unload_hra_weights(shared)
    assert list_hra_adapters(pipe) == list_hra_adapters(back) == {}
    assert not close(image(pipe), adapted, 1e-3)


@pytest.mark.parametrize("first", [True, False])
def test_pipelines_that_share_components_list_change_and_save_alike(pipe, adapters, image, first, tmp_path):
    base = image(pipe)
    if first:
        load_hra_weights(pipe, adapters / "a", "mine")
    other = StableDiffusionPipeline.from_pipe(pipe)
    if not first:
        load_hra_weights(pipe, adapters / "a", "mine")
    adapted = image(pipe)
    assert torch.equal(image(other), adapted)
    assert list(list_hra_adapters(other)) == ["mine"]
    set_hra_adapters(other, "mine", 0.5)
    assert list_hra_adapters(pipe)["mine"].strength == 0.5
    unload_hra_weights(pipe)
    assert list_hra_adapters(other) == {}
    assert torch.equal(image(other), base)
    load_hra_weights(other, adapters / "b", "b")
    load_hra_weights(pipe, adapters / "a", "mine")
    assert list(list_hra_adapters(other)) == list(list_hra_adapters(pipe))
    assert torch.equal(image(other), adapted)
    for number, saved in enumerate((pipe, other)):
        saved.save_pretrained(tmp_path / str(number))
        for path in (tmp_path / str(number)).rglob("*.safetensors"):
            assert not [key for key in load_file(path) if "hra" in key or "base_layer" in key]
        again = StableDiffusionPipeline.from_pretrained(tmp_path / str(number), use_safetensors=True)
        assert torch.equal(image(again), base)
    unload_hra_weights(other)
    assert list_hra_adapters(pipe) == {}
    assert torch.equal(image(pipe), base)


def test_a_component_s_own_verbs_act_on_adapters_and_loras(pipe, adapters, lora):
    def predicted() -> torch.Tensor:
        torch.manual_seed(0)
        width = pipe.unet.config.cross_attention_dim
        with torch.no_grad():
            return pipe.unet(torch.randn(1, 4, 8, 8), 500, torch.randn(1, 5, width)).sample

    base = predicted()
    pipe.load_lora_weights(lora.parent, adapter_name="lora", weight_name=lora.name)
    load_hra_weights(pipe, adapters / "a", "mine")
    both = predicted()
    assert not close(both, base, 1e-3)
    pipe.unet.disable_adapters()
    assert close(predicted(), base)
    pipe.unet.enable_adapters()
    assert close(predicted(), both)
    with pytest.raises(ConfigError, match="no adapter named 'other'"):
        pipe.unet.delete_adapters(["mine", "other"])
    assert close(predicted(), both)
    pipe.unet.delete_adapters(["mine", "lora"])
    assert close(predicted(), base)
