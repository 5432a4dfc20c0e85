"""From a LoRA to HRA: a rotation is kept exactly, and the loss of any other LoRA is reported."""

import json
import re
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from hra_diffusion import export_lora, fit_lora, load_hra_weights
from hra_diffusion.cli.main import main
from hra_diffusion.errors import AdapterFileError, OutputError
from hra_diffusion.formats.lora import LAYOUTS, kohya_names, read_lora
from hra_diffusion.pipelines import base_model
from hra_diffusion.pipelines.components import module_names


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def exported(adapter, folder, layout, pipe, **options):
    """The fp32 LoRA of an adapter, in a layout's file or folder."""
    path = folder / (layout if layout == "peft" else f"{layout}.safetensors")
    return export_lora(adapter, path, base=pipe, layout=layout, dtype="fp32", **options)


@pytest.mark.parametrize("layout", LAYOUTS)
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
    fit = fit_lora(exported(adapter, tmp_path, layout, pipe), tmp_path / "back", base=pipe)
    assert fit.rank == 8
    assert fit.lost < 1e-5
    assert max(fit.layers.values()) == next(iter(fit.layers.values())) < 1e-4
    load_hra_weights(pipe, adapter)
    expected = image(pipe)
    other = load(kind, folder)
    load_hra_weights(other, tmp_path / "back")
    assert off(image(other), expected) < 1e-3


@pytest.mark.parametrize("model", ["SD", "SDXL"])
def test_all_layouts_are_read_back_bit_for_bit(model, adapters, xl_conv_adapter, tiny_sd, tiny_sdxl, load, tmp_path):
    """At a strength that is not 1, with convolutions, for the UNet and all text encoders."""
    kind, folder, adapter = (
        (StableDiffusionPipeline, tiny_sd, adapters / "conv")
        if model == "SD"
        else (StableDiffusionXLPipeline, tiny_sdxl, xl_conv_adapter)
    )
    pipe = load(kind, folder)
    modules = [(name, module) for name, module in module_names(pipe) if hasattr(at(pipe, name, module), "weight")]
    factors = [
        read_lora(exported(adapter, tmp_path, layout, pipe, strength=0.7), modules)
        for layout in ("diffusers", *LAYOUTS)
    ]
    written = load_file(tmp_path / "diffusers.safetensors")
    assert len(factors[0]) == len(written) / 2
    for (component, module), read in factors[0].items():
        name = next(name for name in written if name in lora_names(component, module))
        assert torch.equal(read.A, written[name].double().flatten(1))
        assert torch.equal(read.B, written[name.replace("lora_A", "lora_B")].double().flatten(1))
    for other in factors[1:]:
        assert list(other) == list(factors[0])
        assert all(torch.equal(other[key].A, read.A) for key, read in factors[0].items())
        assert all(torch.equal(other[key].B, read.B) for key, read in factors[0].items())


def at(pipe, component, module):
    return getattr(pipe, component).get_submodule(module)


def lora_names(component, module):
    return (f"{component}.{module}.lora_A.weight", f"{component}.text_model.{module}.lora_A.weight")


@pytest.mark.parametrize("prefix", ["unet.", ""], ids=["with unet", "without unet"])
def test_diffusers_and_the_import_read_the_same_from_old_processor_names(prefix, pipe, tiny_sd, load, tmp_path):
    """`load_lora_weights` of the installed diffusers still reads files of its attention processors."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for component in ("unet", "text_encoder") if prefix else ("unet",):
        for module, layer in getattr(pipe, component).named_modules():
            old = re.sub(r"(attn\d)\.to_(q|k|v|out\.0)$", r"\1.processor.to_\2_lora", module).replace(
                ".0_lora", "_lora"
            )
            old = re.sub(r"self_attn\.(q|k|v|out)_proj$", r"self_attn.to_\1_lora", old)
            if old != module:
                text = "text_encoder.text_model." if component == "text_encoder" else prefix
                old = old.removeprefix("text_model.")  # transformers 4 has it in the names of modules
                for part, shape in (("down", (2, layer.in_features)), ("up", (layer.out_features, 2))):
                    tensors[f"{text}{old}.{part}.weight"] = 0.1 * torch.randn(shape, generator=generator)
    save_file(tensors, tmp_path / "old.safetensors")
    factors = read_lora(tmp_path / "old.safetensors", module_names(pipe))
    assert 2 * len(factors) == len(tensors)
    theirs = load(StableDiffusionPipeline, tiny_sd)
    if prefix:
        theirs.load_lora_weights(tmp_path, weight_name="old.safetensors")
        theirs.fuse_lora()
    else:
        theirs.unet.load_lora_adapter(load_file(tmp_path / "old.safetensors"), prefix=None)
        theirs.unet.fuse_lora()
    theirs.unload_lora_weights()
    for (component, module), read in factors.items():
        before, after = at(pipe, component, module).weight, at(theirs, component, module).weight
        assert off(after - before, (read.B @ read.A).float()) < 1e-5


def test_the_scales_that_diffusers_saves_in_a_header_are_those_of_its_weights(pipe, tiny_sd, load, tmp_path):
    config = LoraConfig(
        r=4, lora_alpha=3, target_modules=["to_q", "conv1", "q_proj"], init_lora_weights=False, use_rslora=True
    )
    config.rank_pattern, config.alpha_pattern = {"attn1.to_q|q_proj": 2}, {"attn2.to_q|q_proj": 7}
    theirs = load(StableDiffusionPipeline, tiny_sd)
    components = {"unet": theirs.unet, "text_encoder": theirs.text_encoder}
    metadata = {}
    for name, model in components.items():
        inject_adapter_in_model(config, model)
        metadata[f"{name}_lora_adapter_metadata"] = config.to_dict()
    state = [get_peft_model_state_dict(model) for model in components.values()]
    theirs.save_lora_weights(tmp_path, *state, **metadata)
    factors = read_lora(tmp_path / "pytorch_lora_weights.safetensors", module_names(pipe))
    layers = {
        (name, module): layer
        for name, model in components.items()
        for module, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    assert layers.keys() == factors.keys() and {len(read.A) for read in factors.values()} == {2, 4}
    for key, layer in layers.items():
        delta = layer.get_delta_weight("default").detach().flatten(1)
        assert off((factors[key].B @ factors[key].A).float(), delta) < 1e-5


def test_the_command_imports_what_the_layout_peft_wrote(adapters, pipe, tiny_sd, tmp_path, capsys):
    folder = exported(adapters / "conv", tmp_path, "peft", pipe)
    flags = ["--pretrained_model_name_or_path", str(tiny_sd)]
    assert main(["import-lora", str(folder), str(tmp_path / "whole"), *flags]) == 0
    assert "rank 8, 0.0% of the LoRA's update lost" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "whole").iterdir() if path.is_dir()} == {"unet", "text_encoder"}
    assert main(["import-lora", str(folder / "unet"), str(tmp_path / "part"), *flags]) == 0
    assert {path.name for path in (tmp_path / "part").iterdir() if path.is_dir()} == {"unet"}
    assert main(["import-lora", str(adapters / "a"), str(tmp_path / "hra"), *flags]) == 2
    assert "adapter of the kind HRA, not for a LoRA. It needs no import" in capsys.readouterr().err
    assert not (tmp_path / "hra").exists()


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
    for module, layer in pipe.unet.adapted_layers().items():
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
