"""The exact LoRA: it gives the images of the HRA pipeline in every tool."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import PeftModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from hra_diffusion import export_lora, load_hra_weights, set_hra_adapters, using_hra_adapters
from hra_diffusion.cli.main import main
from hra_diffusion.errors import AdapterFileError, ConfigError, OutputError
from hra_diffusion.formats.original_names import original_names
from hra_diffusion.pipelines import adapted_components
from tests.versions import older

STRENGTHS = (0.5, 1.0, 1.3)
PIXEL = 1 / 255


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def read(file):
    """Tensors and metadata of a file."""
    with safe_open(file, "pt") as opened:
        return load_file(file), opened.metadata()


@pytest.fixture(params=["SD", "SD with convolutions", "SD 2", "SDXL", "SDXL with convolutions"])
def case(request, tiny_sd, tiny_sdxl, adapters):
    """A kind of pipeline, its folder and an adapter."""
    if "XL" in request.param:
        name = "xl_conv_adapter" if "conv" in request.param else "xl_adapter"
        return StableDiffusionXLPipeline, tiny_sdxl, request.getfixturevalue(name)
    if request.param == "SD 2":
        return StableDiffusionPipeline, *(request.getfixturevalue(name) for name in ("tiny_sd2", "sd2_adapter"))
    return StableDiffusionPipeline, tiny_sd, adapters / ("conv" if "conv" in request.param else "a")


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_diffusers_generates_the_same_with_the_lora(request, case, layout, load, image, tmp_path):
    if "convolutions-kohya" in request.node.name and older("diffusers", "0.39"):
        pytest.skip("diffusers 0.39: kohya's names of convolutions outside of blocks are read")
    kind, folder, adapter = case
    pipe, other = load(kind, folder), load(kind, folder)
    base = image(other)
    load_hra_weights(pipe, adapter)
    for strength in STRENGTHS:
        set_hra_adapters(pipe, "default", strength)
        expected = image(pipe)
        file = export_lora(
            adapter, tmp_path / "x.safetensors", base=folder, layout=layout, strength=strength, dtype="fp32"
        )
        other.load_lora_weights(file.parent, weight_name=file.name, use_safetensors=True)
        assert off(expected, base) > 5 * PIXEL
        assert off(image(other), expected) < PIXEL / 10
        other.unload_lora_weights()


def test_kohyas_formula_gives_the_adapted_weights_in_every_layer(case, load, tmp_path):
    """W + alpha / r · up · down, with the modules looked up by name, independently of the writing code."""
    kind, folder, adapter = case
    pipe = load(kind, folder)
    for name in ("unet", "text_encoder", "text_encoder_2"):
        if getattr(pipe, name, None) is not None:
            getattr(pipe, name).double()
    tensors = load_file(export_lora(adapter, tmp_path / "x.safetensors", base=pipe, strength=0.7, dtype="fp64"))
    load_hra_weights(pipe, adapter)
    set_hra_adapters(pipe, "default", 0.7)
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
    if kind is StableDiffusionXLPipeline:
        prefixes |= {"text_encoder": "lora_te1_text_model_", "text_encoder_2": "lora_te2_text_model_"}
    for component, model in adapted_components(pipe).items():
        model.merge_adapter()
        original = component == "unet" and kind is StableDiffusionXLPipeline
        spelled = original_names([module for module, _ in model.model.named_modules()]) if original else {}
        for module, layer in model.adapted_layers().items():
            name = prefixes[component] + spelled.get(module, module.removeprefix("text_model.")).replace(".", "_")
            up, down, alpha = (
                tensors.pop(f"{name}.{part}") for part in ("lora_up.weight", "lora_down.weight", "alpha")
            )
            delta = alpha / len(down) * (up.flatten(1) @ down.flatten(1))
            merged, original = layer.base_layer.weight, layer.original_weight()
            assert off(original + delta.view_as(original), merged) < 1e-12
            assert down.shape[1:] == original.shape[1:]
    assert tensors == {}


def test_peft_loads_the_layout_peft(adapters, load, tiny_sd, tmp_path):
    pipe = load(StableDiffusionPipeline, tiny_sd)
    inputs = (torch.ones(1, 4, 8, 8), torch.tensor([3]), torch.ones(1, 5, 32))
    export_lora(adapters / "conv", tmp_path / "lora", base=pipe, layout="peft", dtype="fp32")
    theirs = PeftModel.from_pretrained(load(StableDiffusionPipeline, tiny_sd).unet, tmp_path / "lora" / "unet")
    load_hra_weights(pipe, adapters / "conv")
    with torch.no_grad():
        assert off(theirs(*inputs).sample, pipe.unet(*inputs).sample) < 1e-4
    assert (tmp_path / "lora" / "text_encoder" / "adapter_config.json").exists()


def test_every_layer_has_one_rank_and_alpha_is_that_rank(adapters, pipe, make_adapter, tmp_path):
    make_adapter(pipe, tmp_path / "mixed", text_encoders=None, rank=6)
    make_adapter(pipe, tmp_path / "mixed", unet=None, rank=2)
    tensors = load_file(export_lora(tmp_path / "mixed", tmp_path / "x.safetensors", base=pipe))
    assert {len(tensor) for name, tensor in tensors.items() if "lora_down" in name} == {6}
    assert {tensor.item() for name, tensor in tensors.items() if "alpha" in name} == {6.0}
    assert any("lora_te_" in name for name in tensors)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_rounding_costs_no_more_than_the_rounding_of_the_update(adapters, pipe, tmp_path, dtype, tolerance):
    """This holds for a weak adapter, too, whose reflections nearly cancel."""
    for strength in (1.0, 0.01):
        exact, rounded = (
            products(
                export_lora(
                    adapters / "b",
                    tmp_path / f"{precision}.safetensors",
                    base=pipe,
                    layout="diffusers",
                    strength=strength,
                    dtype=precision,
                )
            )
            for precision in ("fp32", dtype)
        )
        for name, delta in exact.items():
            assert (delta - rounded[name]).norm() < tolerance * delta.norm()


def products(file) -> dict[str, torch.Tensor]:
    """B A of every layer."""
    tensors = {name: tensor.float().flatten(1) for name, tensor in load_file(file).items()}
    return {
        name: tensor @ tensors[name.replace("lora_B", "lora_A")] for name, tensor in tensors.items() if "lora_B" in name
    }


def test_the_pipeline_is_unchanged_by_an_export(adapters, pipe, image, tmp_path):
    load_hra_weights(pipe, adapters / "a", "a")
    set_hra_adapters(pipe, "a", 0.6)
    before, components = image(pipe), dict(pipe.components)
    export_lora(adapters / "b", tmp_path / "b.safetensors", base=pipe)
    with pytest.raises(AdapterFileError):
        export_lora(adapters / "a" / "nothing", tmp_path / "b.safetensors", base=pipe)
    assert torch.equal(image(pipe), before)
    assert all(pipe.components[name] is component for name, component in components.items())
    with using_hra_adapters(pipe, []):
        assert off(image(pipe), before) > PIXEL


def test_the_command_writes_the_same_file_as_python_with_the_runs_metadata(trained, tiny_sd, tmp_path, capsys):
    mine, theirs = tmp_path / "dog.safetensors", tmp_path / "again" / "dog.safetensors"
    flags = ["--layout", "kohya", "--strength", "0.5", "--dtype", "bf16", "--license", "mit"]
    assert main(["export-lora", str(trained), str(mine), *flags]) == 0
    assert capsys.readouterr().out.strip() == str(mine)
    export_lora(trained, theirs, base=tiny_sd, strength=0.5, dtype=torch.bfloat16, license="mit")
    tensors, metadata = zip(*map(read, (mine, theirs)), strict=True)
    assert metadata[0] == metadata[1]
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
    metadata = metadata[0]
    assert metadata["ss_base_model_version"] == "sd_v1"
    assert metadata["ss_sd_model_name"] == tiny_sd.name
    assert str(tmp_path.parent) not in str(metadata)
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.trigger_phrase"] == "a photo of a sks dog"
    assert metadata["modelspec.license"] == "mit"
    assert metadata["modelspec.title"] == metadata["ss_output_name"] == "dog"
    assert metadata["ss_network_dim"] == "8" and metadata["ss_network_alpha"] == "8.0"
    assert metadata["ss_max_train_steps"] == "6"
    assert json.loads(metadata["ss_training_comment"])["seed"] == 5
    assert metadata["modelspec.thumbnail"].startswith("data:image/jpeg;base64,/9j/")


def test_a_thumbnail_can_be_chosen(adapters, pipe, tmp_path):
    Image.new("RGB", (9, 9), "red").save(tmp_path / "red.png")
    file = export_lora(adapters / "b", tmp_path / "b.safetensors", base=pipe, thumbnail=tmp_path / "red.png")
    assert read(file)[1]["modelspec.thumbnail"].startswith("data:image/jpeg")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"layout": "civitai"}, "layout must be one of kohya, diffusers, peft"),
        ({"output": "x.bin"}, "does not look like one"),
        ({"output": "x.safetensors", "layout": "peft"}, "a folder, with a sub-folder a component"),
        ({"dtype": "fp8"}, "dtype 'fp8' is not supported: did you mean 'fp"),
        ({"strength": 0.0}, "changes nothing"),
        ({"strength": float("inf")}, "finite number"),
        ({"thumbnail": "none.png"}, "cannot be read as an image"),
    ],
)
def test_an_impossible_export_is_refused_and_nothing_is_written(adapters, pipe, tmp_path, arguments, complaint):
    output = tmp_path / arguments.pop("output", "x.safetensors")
    with pytest.raises(ValueError, match=complaint):
        export_lora(adapters / "b", output, base=pipe, **arguments)
    assert list(tmp_path.iterdir()) == []
    assert adapted_components(pipe) == {}


def test_an_unwritable_path_and_an_adapter_without_a_base_are_named(adapters, pipe, make_adapter, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Cannot write"):
        export_lora(adapters / "b", tmp_path / "file" / "x.safetensors", base=pipe)
    make_adapter(pipe, tmp_path / "homeless", base=None, text_encoders=None)
    with pytest.raises(ValueError, match="does not name its base"):
        export_lora(tmp_path / "homeless", tmp_path / "x.safetensors")


def test_biases_and_odd_ranks_at_other_strengths_are_refused(pipe, tmp_path):
    from hra_diffusion import HRAConfig, HRAModel

    model = HRAModel(pipe.unet, HRAConfig(target_modules=["to_q"], bias="all"))
    model.save_pretrained(tmp_path / "unet")
    model.unload()
    with pytest.raises(ConfigError, match="merge it instead"):
        export_lora(tmp_path, tmp_path / "x.safetensors", base=pipe)
    with pytest.warns(UserWarning, match="is odd"):
        model = HRAModel(pipe.unet, HRAConfig(r=3, target_modules=["to_q"]))
    model.save_pretrained(tmp_path / "my.dog" / "unet")
    model.unload()
    with pytest.raises(ConfigError, match="adapter 'my dog exported' has the odd rank 3"):
        export_lora(tmp_path / "my.dog", tmp_path / "x.safetensors", base=pipe, strength=0.5)
