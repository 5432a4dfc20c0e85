"""The exact DoRA of an adapter with magnitudes: it gives the images of the HRA pipeline in other tools."""

import logging

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from hra_diffusion import HRAConfig, HRAModel, export_lora, load_hra_weights, set_hra_adapters
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.lora import ModuleKey, Update, kohya_tensors
from hra_diffusion.formats.lora.reading import read_lora
from hra_diffusion.pipelines import adapted_components
from tests.versions import older

TARGETS = {"unet": ["to_q", "to_v", "proj_in", "conv1", "downsamplers.0.conv"], "text_encoder": ["q_proj", "fc1"]}
STRENGTH = 0.6
PIXEL = 1 / 255


@pytest.fixture(scope="module")
def adapter(tiny_sd, tmp_path_factory):
    """The folder of an adapter with magnitudes, and another rank in some layers."""
    folder = tmp_path_factory.mktemp("dora")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    generator = torch.Generator().manual_seed(0)
    for name, targets in TARGETS.items():
        patterns = {"to_v": 2} if name == "unet" else {}
        config = HRAConfig(r=4, rank_pattern=patterns, target_modules=targets, use_magnitude=True)
        model = HRAModel(getattr(pipe, name), config, generator=generator)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if parameter.requires_grad:
                    scale = 0.3 if "magnitude" in key else 1.0
                    parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
def test_diffusers_and_peft_generate_the_same_with_the_dora(layout, adapter, tiny_sd, load, image, tmp_path):
    if layout == "diffusers" and older("diffusers", "0.39"):
        pytest.skip("diffusers 0.39: a text encoder's magnitudes are read")
    pipe, other = load(StableDiffusionPipeline, tiny_sd), load(StableDiffusionPipeline, tiny_sd)
    base = image(other)
    load_hra_weights(pipe, adapter)
    set_hra_adapters(pipe, "default", STRENGTH)
    expected = image(pipe)
    output = tmp_path / ("dora" if layout == "peft" else "dora.safetensors")
    export_lora(adapter, output, base=tiny_sd, layout=layout, strength=STRENGTH, dtype="fp16")
    if layout == "diffusers":
        other.load_lora_weights(tmp_path, weight_name=output.name, use_safetensors=True)
    else:
        for name in TARGETS:
            model = PeftModel.from_pretrained(getattr(other, name), output / name)
            setattr(other, name, model.merge_and_unload())
    assert (expected - base).abs().max() > 5 * PIXEL
    assert (image(other) - expected).abs().max() < 2 * PIXEL


@pytest.mark.parametrize("norms_of_the_base", [True, False])
def test_the_formula_of_comfyui_gives_the_adapted_weights(norms_of_the_base, adapter, tiny_sd, load, tmp_path, caplog):
    """dora_scale / ‖W‖ · (W + alpha / r · up · down): newer versions take W's norms, older ones those of the sum."""
    pipe = load(StableDiffusionPipeline, tiny_sd)
    pipe.unet.double()
    with caplog.at_level(logging.WARNING):
        file = export_lora(adapter, tmp_path / "x.safetensors", base=pipe, layout="kohya", dtype="fp64")
    assert "diffusers ignores the magnitudes" in caplog.text
    with safe_open(file, "pt") as opened:
        assert "exact DoRA" in opened.metadata()["modelspec.description"]
    tensors = load_file(file)
    load_hra_weights(pipe, adapter)
    unet = adapted_components(pipe)["unet"]
    unet.merge_adapter()
    for module, layer in unet.adapted_layers().items():
        name = f"lora_unet_{module.replace('.', '_')}"
        W = layer.original_weight().detach()
        down, up = (tensors[f"{name}.lora_{part}.weight"] for part in ("down", "up"))
        total = W + tensors[f"{name}.alpha"] / len(down) * (up.flatten(1) @ down.flatten(1)).view_as(W)
        measured = W if norms_of_the_base else total
        norms = measured.flatten(1).norm(dim=1).view(-1, *[1] * (W.dim() - 1))
        scale = tensors[f"{name}.dora_scale"]
        assert scale.shape == norms.shape
        assert torch.allclose(scale / norms * total, layer.base_layer.weight, rtol=0, atol=1e-10)


def test_a_layer_joined_from_several_has_one_magnitude():
    def update(module, magnitude):
        return Update(component="transformer", module=module, A=torch.eye(2), B=torch.ones(2, 2), magnitude=magnitude)

    names: dict[ModuleKey, str] = {("transformer", part): "lora_unet_qkv" for part in "qkv"}
    widths = dict.fromkeys(names, 2)
    updates = [update(part, torch.full((2,), float(index))) for index, part in enumerate("qkv")]
    scale = kohya_tensors(updates, torch.float32, names, widths)["lora_unet_qkv.dora_scale"]
    assert scale.flatten().tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ConfigError, match="joins several layers"):
        kohya_tensors(updates[:2], torch.float32, names, widths)


def test_a_row_of_zeros_is_refused(tiny_sd, adapter, load, tmp_path):
    pipe = load(StableDiffusionPipeline, tiny_sd)
    with torch.no_grad():
        pipe.unet.get_submodule("down_blocks.0.attentions.0.proj_in").weight[3] = 0
    with pytest.raises(ConfigError, match="rows of zeros"):
        export_lora(adapter, tmp_path / "x.safetensors", base=pipe)
    assert not list(tmp_path.iterdir())


def test_a_dora_is_refused_on_import(adapter, tiny_sd, tmp_path):
    file = export_lora(adapter, tmp_path / "x.safetensors", base=tiny_sd, layout="diffusers")
    with pytest.raises(AdapterFileError, match="DoRA"):
        read_lora(file, [("unet", name) for name, _ in nn.Identity().named_modules()])
