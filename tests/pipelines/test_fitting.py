"""From a LoRA to HRA: a rotation is kept exactly, and the loss of any other LoRA is reported."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from hra_diffusion import export_lora, fit_lora, load_hra_weights
from hra_diffusion.cli.main import main
from hra_diffusion.errors import AdapterFileError, OutputError
from hra_diffusion.formats.lora import kohya_names
from hra_diffusion.pipelines import base_model


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
@pytest.mark.parametrize("model", ["SD", "SDXL"])
def test_the_lora_of_an_adapter_is_fitted_by_that_adapter(
    layout, model, adapters, xl_adapter, tiny_sd, tiny_sdxl, load, image, tmp_path
):
    kind, folder, adapter = (
        (StableDiffusionPipeline, tiny_sd, adapters / "conv")
        if model == "SD"
        else (StableDiffusionXLPipeline, tiny_sdxl, xl_adapter)
    )
    pipe = load(kind, folder)
    file = export_lora(adapter, tmp_path / "x.safetensors", base=pipe, layout=layout, dtype="fp32")
    fit = fit_lora(file, tmp_path / "back", base=pipe)
    assert fit.rank == 8
    assert fit.lost < 1e-5
    assert max(fit.layers.values()) == next(iter(fit.layers.values())) < 1e-4
    load_hra_weights(pipe, adapter)
    expected = image(pipe)
    other = load(kind, folder)
    load_hra_weights(other, tmp_path / "back")
    assert off(image(other), expected) < 1e-3


def random_lora(file, pipe, tmp_path, **metadata):
    """A random LoRA with the layers of a real one."""
    tensors = load_file(file)
    generator = torch.Generator().manual_seed(0)
    random = {
        name: tensor if "alpha" in name else 0.1 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in tensors.items()
    }
    save_file(random, tmp_path / "random.safetensors", metadata=metadata)
    return tmp_path / "random.safetensors"


def test_the_reported_loss_of_a_random_lora_is_that_of_the_weights(adapters, pipe, tiny_sd, tmp_path, capsys):
    lora = random_lora(export_lora(adapters / "b", tmp_path / "b.safetensors", base=pipe), pipe, tmp_path)
    arguments = ["import-lora", str(lora), str(tmp_path / "fit"), "--pretrained_model_name_or_path", str(tiny_sd)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert base_model(tmp_path / "fit") == str(tiny_sd)
    weights = {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}
    load_hra_weights(pipe, tmp_path / "fit")
    pipe.unet.merge_adapter()
    tensors, missing, size = load_file(lora), 0.0, 0.0
    for module, layer in pipe.unet.layers().items():
        name = "lora_unet_" + module.replace(".", "_")
        delta = tensors[f"{name}.lora_up.weight"].flatten(1) @ tensors[f"{name}.lora_down.weight"].flatten(1)
        before = weights[f"{module}.weight"].flatten(1)
        missing += (layer.base_layer.weight.flatten(1) - before - delta).square().sum().item()
        size += delta.square().sum().item()
    assert f"rank 8, {(missing / size) ** 0.5:.1%} of the LoRA's update lost" in printed
    assert 0.3 < (missing / size) ** 0.5 < 1


def test_alpha_and_diffusers_metadata_scale_the_update(adapters, pipe, tmp_path):
    def lost(file, folder):
        return fit_lora(file, tmp_path / str(folder), base=pipe).layers

    kohya = random_lora(
        export_lora(adapters / "b", tmp_path / "b.safetensors", base=pipe, dtype="fp32"), pipe, tmp_path
    )
    tensors = load_file(kohya)
    save_file({n: t / 2 if "alpha" in n else t for n, t in tensors.items()}, tmp_path / "half.safetensors")
    save_file({n: t / 2 if "lora_up" in n else t for n, t in tensors.items()}, tmp_path / "halved.safetensors")
    assert lost(tmp_path / "half.safetensors", 1) == pytest.approx(lost(tmp_path / "halved.safetensors", 2))
    diffusers = export_lora(adapters / "b", tmp_path / "d.safetensors", base=pipe, layout="diffusers", dtype="fp32")
    header = json.dumps({"unet.r": 4, "unet.lora_alpha": 2})
    scaled = random_lora(diffusers, pipe, tmp_path, lora_adapter_metadata=header)
    tensors = load_file(scaled)
    save_file({n: t / 2 if "lora_B" in n else t for n, t in tensors.items()}, tmp_path / "plain.safetensors")
    assert lost(scaled, 3) == pytest.approx(lost(tmp_path / "plain.safetensors", 4))


def test_a_file_that_is_no_lora_of_this_model_is_refused_and_nothing_is_written(
    adapters, pipe, xl_adapter, tiny_sdxl, tmp_path
):
    xl = export_lora(xl_adapter, tmp_path / "xl.safetensors", base=tiny_sdxl)
    with pytest.raises(AdapterFileError, match=r"there is no module for|is for another model"):
        fit_lora(xl, tmp_path / "fit", base=pipe)
    file = export_lora(adapters / "b", tmp_path / "b.safetensors", base=pipe)
    tensors = load_file(file)
    name = next(name.removesuffix(".alpha") for name in tensors if "alpha" in name)
    save_file({**tensors, f"{name}.dora_scale": torch.ones(1)}, tmp_path / "dora.safetensors")
    with pytest.raises(AdapterFileError, match="dora_scale"):
        fit_lora(tmp_path / "dora.safetensors", tmp_path / "fit", base=pipe)
    tensors[f"{name}.lora_down.weight"] = torch.ones(4, 3)
    save_file(tensors, tmp_path / "narrow.safetensors")
    with pytest.raises(AdapterFileError, match="is for another model: its update of"):
        fit_lora(tmp_path / "narrow.safetensors", tmp_path / "fit", base=pipe)
    for header in ("{", '{"unet.lora_alpha": 2}'):
        save_file(load_file(file), tmp_path / "header.safetensors", {"lora_adapter_metadata": header})
        with pytest.raises(AdapterFileError, match=r"has a damaged header: lora_adapter_metadata is"):
            fit_lora(tmp_path / "header.safetensors", tmp_path / "fit", base=pipe)
    (tmp_path / "pickle.safetensors").write_bytes(b"\x80\x04")
    with pytest.raises(AdapterFileError, match="no intact safetensors"):
        fit_lora(tmp_path / "pickle.safetensors", tmp_path / "fit", base=pipe)
    with pytest.raises(AdapterFileError, match=r"is a folder: name the \.safetensors file"):
        fit_lora(tmp_path, tmp_path / "fit", base=pipe)
    assert not (tmp_path / "fit").exists()
    shutil.copytree(adapters / "a", tmp_path / "run" / "adapter")
    for taken in (adapters / "a", tmp_path / "run"):
        with pytest.raises(OutputError, match="holds an adapter already"):
            fit_lora(file, taken, base=pipe)


@pytest.mark.parametrize("convolutions", [False, True])
def test_kohya_s_loras_of_stable_diffusion_xl_are_read_by_original_and_diffusers_names(
    convolutions, request, xl_adapter, tiny_sdxl, load, tmp_path
):
    """kohya writes the names of the original code, some converters those of diffusers."""
    adapter = request.getfixturevalue("xl_conv_adapter") if convolutions else xl_adapter
    pipe = load(StableDiffusionXLPipeline, tiny_sdxl)
    file = export_lora(adapter, tmp_path / "original.safetensors", base=pipe, dtype="fp32")
    names = kohya_names(
        [("unet", name) for name, module in pipe.unet.named_modules() if hasattr(module, "weight")],
        two_text_encoders=True,
    )
    diffusers = {name: f"lora_unet_{module}".replace(".", "_") for (_, module), name in names.items()}
    tensors = {}
    for key, tensor in load_file(file).items():
        module, part = key.split(".", 1)
        assert module.startswith(("lora_te1_text_model_", "lora_te2_text_model_")) or module in diffusers
        tensors[f"{diffusers.get(module, module)}.{part}"] = tensor
    assert any("lora_unet_output_blocks_0_1_transformer_blocks_1_attn2_to_k" in name for name in load_file(file))
    save_file(tensors, tmp_path / "diffusers.safetensors")
    fits = [
        fit_lora(tmp_path / f"{name}.safetensors", tmp_path / name, base=pipe) for name in ("original", "diffusers")
    ]
    assert fits[0] == fits[1]
    assert fits[0].lost < 1e-5
