"""The exact LoRA of transformers: the layouts of diffusers and PEFT, and ComfyUI's weights with kohya's names."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hra_diffusion import HRAConfig, export_lora, fit_lora, load_hra_weights
from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.lora import LAYOUTS
from hra_diffusion.pipelines import generate_image, load_pipeline
from hra_diffusion.training.families import FAMILIES
from tests import models
from tests.formats.test_flux_1_names import DOUBLE, OUTER, SINGLE, blocks
from tests.pipelines.conftest import rotated
from tests.versions import transformer_families

pytestmark = transformer_families

OPTIONS = {"height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": None}
QKV = "layers.1.attention"
METADATA = {
    "z-image": ("Z-Image", "z_image"),
    "flux-1": ("flux-1-dev", "flux1"),
    "chroma": ("chroma", "chroma"),
    "flux-2-dev": ("Flux.2-dev", "flux_2_dev"),
    "qwen-image": ("Qwen-Image", "qwen_image"),
}
"""Architecture of ModelSpec and kohya's version of the base, by the name of its folder."""


@pytest.fixture
def z_image(tiny_transformer):
    return tiny_transformer("z-image")


def write_adapter(base, folder, targets=None):
    """Write an adapter of a transformer, by default of its family's targets."""
    pipe = load_pipeline(str(base))
    targets = targets or FAMILIES[type(pipe).__name__].default_targets
    if base.name.startswith("flux-2"):  # blocks with two streams have a list of layers with a layer's name
        targets = [target.replace("attn.to_out", "single_transformer_blocks.0.attn.to_out") for target in targets]
    adapted = rotated(pipe.transformer, targets, rank=4, seed=3, angle=1.0)
    adapted.peft_config["default"] = HRAConfig(r=4, target_modules=targets, base_model_name_or_path=str(base))
    adapted.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(
    scope="module",
    params=[
        "z-image",
        "flux-1",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("chroma", "flux-2-klein", "flux-2-dev")),
        "qwen-image",
    ],
)
def case(request, tiny_transformer, tmp_path_factory):
    """A base and an adapter of it."""
    base = tiny_transformer(request.param)
    return base, write_adapter(base, tmp_path_factory.mktemp("adapter"))


def pixels(pipe):
    image = generate_image(pipe, "a sks dog", 3, output_type="pt", **OPTIONS)
    return image.float()


def test_diffusers_generates_the_same_image_with_the_lora(case, tmp_path):
    base, adapter = case
    pipe, other = load_pipeline(str(base)), load_pipeline(str(base))
    before = pixels(pipe)
    file = export_lora(adapter, tmp_path / "x.safetensors", base=pipe, layout="diffusers", dtype="fp32")
    load_hra_weights(pipe, adapter)
    other.load_lora_weights(file.parent, weight_name=file.name, use_safetensors=True)
    change = (pixels(pipe) - before).abs().max()
    assert change > 1 / 255
    assert (pixels(other) - pixels(pipe)).abs().max() < change / 50


@pytest.mark.parametrize("model", ["qwen-image", "flux-2-klein"])
def test_diffusers_reads_kohyas_names(tiny_transformer, model, tmp_path):
    base = tiny_transformer(model)
    pipe, other = load_pipeline(str(base)), load_pipeline(str(base))
    adapter = write_adapter(base, tmp_path / "adapter")
    file = export_lora(adapter, tmp_path / "x.safetensors", base=pipe, dtype="fp32")
    before = pixels(pipe)
    load_hra_weights(pipe, adapter)
    other.load_lora_weights(file.parent, weight_name=file.name, use_safetensors=True)
    change = (pixels(pipe) - before).abs().max()
    assert change > 1 / 255
    assert (pixels(other) - pixels(pipe)).abs().max() < change / 50


def test_peft_reads_its_layout(case, tmp_path):
    base, adapter = case
    pipe = load_pipeline(str(base))
    export_lora(adapter, tmp_path / "lora", base=pipe, layout="peft", dtype="fp32")
    theirs = PeftModel.from_pretrained(load_pipeline(str(base)).transformer, tmp_path / "lora" / "transformer")
    load_hra_weights(pipe, adapter)
    pipe.transformer.merge_adapter()
    theirs.merge_adapter()
    for name, layer in pipe.transformer.adapted_layers().items():
        weight = theirs.get_submodule(f"base_model.model.{name}").base_layer.weight
        assert torch.allclose(weight, layer.base_layer.weight, atol=1e-5)


def merged_weights(pipe, adapter) -> dict[str, torch.Tensor]:
    """Return the changes of a transformer's weights by an adapter."""
    load_hra_weights(pipe, adapter)
    pipe.transformer.merge_adapter()
    layers = pipe.transformer.adapted_layers().items()
    return {name: layer.base_layer.weight - layer.original_weight() for name, layer in layers}


def test_comfyuis_weights_change_by_the_changes_of_their_parts(case, tmp_path):
    """W + alpha / r · up · down, where the weight of q, k and v is one above another."""
    base, adapter = case
    pipe = load_pipeline(str(base))
    pipe.transformer.double()
    tensors = load_file(export_lora(adapter, tmp_path / "x.safetensors", base=pipe, dtype="fp64"))
    changes = merged_weights(pipe, adapter)
    for weight, parts in comfyuis_weights(base, changes).items():
        name, change = f"lora_unet_{weight}".replace(".", "_"), torch.cat([changes.pop(part) for part in parts])
        up, down, alpha = (tensors.pop(f"{name}.{part}") for part in ("lora_up.weight", "lora_down.weight", "alpha"))
        assert len(down) == alpha == 4 * len(parts)
        assert (alpha / len(down) * (up @ down) - change).abs().max() < 1e-12
    assert tensors == changes == {}


def comfyuis_weights(base, modules) -> dict[str, list[str]]:
    """Return ComfyUI's weights of adapted modules, each with the modules that are its rows."""
    weights = {module: [module] for module in modules}
    if base.name == "z-image":
        for attention in [name.removesuffix(".to_q") for name in modules if name.endswith(".to_q")]:
            weights[f"{attention}.qkv"] = [f"{attention}.to_{part}" for part in "qkv"]
            weights[f"{attention}.out"] = [f"{attention}.to_out.0"]
            for part in ("to_q", "to_k", "to_v", "to_out.0"):
                del weights[f"{attention}.{part}"]
    if base.name in ("flux-1", "chroma"):
        weights = {name: parts for name, parts in (blocks(DOUBLE, SINGLE) | OUTER).items() if parts[0] in modules}
    if base.name.startswith("flux-2"):
        single = {"linear1": ["attn.to_qkv_mlp_proj"], "linear2": ["attn.to_out"]}
        weights = {name: parts for name, parts in blocks(DOUBLE, single).items() if parts[0] in modules}
    return weights


def test_rows_of_a_fused_layer_without_an_adapter_do_not_change(z_image, tmp_path):
    pipe = load_pipeline(str(z_image))
    adapter = write_adapter(z_image, tmp_path / "adapter", targets=[f"{QKV}.to_v", f"{QKV}.to_out.0"])
    tensors = load_file(export_lora(adapter, tmp_path / "x.safetensors", base=pipe, dtype="fp32"))
    up = tensors["lora_unet_layers_1_attention_qkv.lora_up.weight"]
    width = pipe.transformer.config.dim
    assert up.shape == (3 * width, 4)
    assert not up[: 2 * width].any() and up[2 * width :].any()


@pytest.mark.parametrize("layout", [*LAYOUTS, "ComfyUI"])
def test_the_lora_is_fitted_by_the_adapter(case, layout, tmp_path):
    base, adapter = case
    pipe = load_pipeline(str(base))
    output = tmp_path / ("lora" if layout == "peft" else "x.safetensors")
    export_lora(adapter, output, base=pipe, layout="kohya" if layout == "ComfyUI" else layout, dtype="fp32")
    if layout == "ComfyUI":
        save_file({comfyuis_name(name): tensor for name, tensor in load_file(output).items()}, output)
    fit = fit_lora(output, tmp_path / "back", base=pipe)
    assert fit.rank == 8 and fit.lost < 1e-5  # 2 r reflections for a LoRA of rank r
    config = json.loads((tmp_path / "back" / "transformer" / "adapter_config.json").read_text())
    theirs = load_file(adapter / "transformer" / "adapter_model.safetensors")
    assert len(config["target_modules"]) == len(theirs)


def comfyuis_name(name: str) -> str:
    """Return ComfyUI's dotted name for a name of kohya's, of the tiny models' layers."""
    module, end = name.split(".", 1)
    module = module.removeprefix("lora_unet_")
    for part in ("to_q", "to_k", "to_v", "to_out", "to_add_out", "add_q_proj", "add_k_proj", "add_v_proj"):
        module = module.replace(part, part.replace("_", "-"))
    for part in ("feed_forward", "context_refiner", "noise_refiner", "transformer_blocks", "img_mlp", "txt_mlp"):
        module = module.replace(part, part.replace("_", "-"))
    for part in ("double_blocks", "single_blocks", "img_attn", "txt_attn", "final_layer"):
        module = module.replace(part, part.replace("_", "-"))
    return f"diffusion_model.{module.replace('_', '.').replace('-', '_')}.{end}"


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("flux-1", {"norm_out.linear": "final_layer.adaLN_modulation.1"}),
        ("flux-2-klein", {"norm_out.linear": "final_layer.adaLN_modulation.1"}),
        (
            "sd3",
            {
                "norm_out.linear": "final_layer.adaLN_modulation.1",
                "transformer_blocks.1.norm1_context.linear": "joint_blocks.1.context_block.adaLN_modulation.1",
            },
        ),
    ],
)
def test_scale_and_shift_are_swapped_in_comfyuis_weights_and_back(tiny_sd, tiny_transformer, model, layers, tmp_path):
    """ComfyUI's tables for these layers have swap_scale_shift (comfy/utils.py)."""
    base = models.save_stable_diffusion_3(tmp_path / model, tiny_sd) if model == "sd3" else tiny_transformer(model)
    pipe = load_pipeline(str(base))
    pipe.transformer.double()
    adapter = write_adapter(base, tmp_path / "adapter", targets=list(layers))
    file = export_lora(adapter, tmp_path / "x.safetensors", base=pipe, dtype="fp64")
    tensors = load_file(file)
    changes = merged_weights(pipe, adapter)
    assert changes.keys() == layers.keys()
    for module, weight in layers.items():
        name = f"lora_unet_{weight}".replace(".", "_")
        up, down = (tensors[f"{name}.lora_{part}.weight"] for part in ("up", "down"))
        scale, shift = changes[module].chunk(2)
        assert (up @ down - torch.cat([shift, scale])).abs().max() < 1e-12
        assert (scale - shift).abs().max() > 1e-3
    assert fit_lora(file, tmp_path / "back", base=base).lost < 1e-5


def test_a_fused_lora_of_another_width_is_refused(z_image, tmp_path):
    name = "diffusion_model.layers.0.attention.qkv"
    A, B = torch.ones(2, 32), torch.ones(100, 2)
    save_file({f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}, tmp_path / "x.safetensors")
    with pytest.raises(AdapterFileError, match=r"its update of .*qkv has 100 rows instead of 96"):
        fit_lora(tmp_path / "x.safetensors", tmp_path / "out", base=z_image)


def test_the_metadata_name_the_family(case, tmp_path):
    base, adapter = case
    file = export_lora(adapter, tmp_path / "x.safetensors", base=base, layout="diffusers")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    architecture, version = METADATA.get(base.name, (None, None))  # FLUX.2 klein has a name for each size
    assert metadata.get("modelspec.architecture") == (architecture and f"{architecture}/lora")
    assert metadata.get("ss_base_model_version") == version
    assert "modelspec.prediction_type" not in metadata
