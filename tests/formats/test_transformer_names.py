"""ComfyUI finds the right weight, and the right rows of it, for every name of a kohya file of a transformer.

ComfyUI looks up a LoRA by the names of its own weights, with underscores after ``lora_unet_`` or with dots after
``diffusion_model.`` (comfy/lora.py). Its weights of Qwen-Image have diffusers' names (comfy/ldm/qwen_image/model.py);
those of Z-Image, FLUX.2 and Stable Diffusion 3 have the original code's, by the tables in comfy/utils.py that are
repeated here.
"""

import pytest
import torch
from diffusers import (
    Flux2Transformer2DModel,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import nn

from hra_diffusion.formats.lora import kohya_names
from hra_diffusion.formats.lora.names import known_names
from tests.versions import transformer_families

pytestmark = transformer_families

QWEN_BLOCK = (
    *(f"attn.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")),
    *(f"attn.{part}" for part in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
    *(f"{side}_mlp.net.{part}" for side in ("img", "txt") for part in ("0.proj", "2")),
    "img_mod.1",
    "txt_mod.1",
)


def z_image_weights() -> dict[str, list[str]]:
    """ComfyUI's linear weights of Z-Image, each with the modules of diffusers that are its rows."""
    stacks = {"layers": 30, "context_refiner": 2, "noise_refiner": 2}
    weights = {}
    for block in (f"{stack}.{i}" for stack, count in stacks.items() for i in range(count)):
        weights[f"{block}.attention.qkv"] = [f"{block}.attention.to_{part}" for part in "qkv"]
        weights[f"{block}.attention.out"] = [f"{block}.attention.to_out.0"]
        same = [*(f"feed_forward.w{i}" for i in (1, 2, 3)), *([] if "context" in block else ["adaLN_modulation.0"])]
        weights |= {f"{block}.{name}": [f"{block}.{name}"] for name in same}
    weights["x_embedder"] = ["all_x_embedder.2-1"]
    for part in ("linear", "adaLN_modulation.1"):
        weights[f"final_layer.{part}"] = [f"all_final_layer.2-1.{part}"]
    return weights | {name: [name] for name in ("cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2")}


def qwen_weights() -> dict[str, list[str]]:
    """ComfyUI's linear weights of Qwen-Image."""
    embedder = "time_text_embed.timestep_embedder"
    outer = ("img_in", "txt_in", "norm_out.linear", "proj_out", f"{embedder}.linear_1", f"{embedder}.linear_2")
    names = [*outer, *(f"transformer_blocks.{i}.{part}" for i in range(60) for part in QWEN_BLOCK)]
    return {name: [name] for name in names}


def flux_2_weights() -> dict[str, list[str]]:
    """ComfyUI's linear weights of FLUX.2 klein with 4 billion weights."""
    weights = {"img_in": ["x_embedder"], "txt_in": ["context_embedder"], "final_layer.linear": ["proj_out"]}
    weights["final_layer.adaLN_modulation.1"] = ["norm_out.linear"]
    for number, layer in ((1, "in_layer"), (2, "out_layer")):
        weights[f"time_in.{layer}"] = [f"time_guidance_embed.timestep_embedder.linear_{number}"]
    for stream in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation"):
        weights[f"{stream}.lin"] = [f"{stream}.linear"]
    for i in range(5):
        ours, theirs = f"transformer_blocks.{i}", f"double_blocks.{i}"
        weights[f"{theirs}.img_attn.qkv"] = [f"{ours}.attn.to_{part}" for part in "qkv"]
        weights[f"{theirs}.txt_attn.qkv"] = [f"{ours}.attn.add_{part}_proj" for part in "qkv"]
        weights |= {
            f"{theirs}.img_attn.proj": [f"{ours}.attn.to_out.0"],
            f"{theirs}.txt_attn.proj": [f"{ours}.attn.to_add_out"],
        }
        for side, layer in (("img", "ff"), ("txt", "ff_context")):
            weights[f"{theirs}.{side}_mlp.0"] = [f"{ours}.{layer}.linear_in"]
            weights[f"{theirs}.{side}_mlp.2"] = [f"{ours}.{layer}.linear_out"]
    for i in range(20):
        for theirs, ours in (("linear1", "to_qkv_mlp_proj"), ("linear2", "to_out")):
            weights[f"single_blocks.{i}.{theirs}"] = [f"single_transformer_blocks.{i}.attn.{ours}"]
    return weights


def sd_3_weights() -> dict[str, list[str]]:
    """ComfyUI's linear weights of Stable Diffusion 3.5 medium."""
    weights = {"context_embedder": ["context_embedder"], "final_layer.linear": ["proj_out"]}
    weights["final_layer.adaLN_modulation.1"] = ["norm_out.linear"]
    for theirs, ours in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder")):
        weights |= {f"{theirs}.mlp.{2 * i}": [f"time_text_embed.{ours}.linear_{i + 1}"] for i in range(2)}
    for i in range(24):
        ours, theirs = f"transformer_blocks.{i}", f"joint_blocks.{i}"
        prompt = f"{theirs}.context_block"
        for attention in ("attn", "attn2") if i < 13 else ("attn",):
            weights[f"{theirs}.x_block.{attention}.qkv"] = [f"{ours}.{attention}.to_{part}" for part in "qkv"]
            weights[f"{theirs}.x_block.{attention}.proj"] = [f"{ours}.{attention}.to_out.0"]
        weights[f"{prompt}.attn.qkv"] = [f"{ours}.attn.add_{part}_proj" for part in "qkv"]
        sides = {f"{theirs}.x_block": ("ff", "norm1")} | ({prompt: ("ff_context", "norm1_context")} if i < 23 else {})
        for side, (layer, norm) in sides.items():
            weights[f"{side}.mlp.fc1"] = [f"{ours}.{layer}.net.0.proj"]
            weights[f"{side}.mlp.fc2"] = [f"{ours}.{layer}.net.2"]
            weights[f"{side}.adaLN_modulation.1"] = [f"{ours}.{norm}.linear"]
        weights |= {f"{prompt}.attn.proj": [f"{ours}.attn.to_add_out"]} if i < 23 else {}
    weights["joint_blocks.23.context_block.adaLN_modulation.1"] = ["transformer_blocks.23.norm1_context.linear"]
    return weights


def make_sd_3() -> SD3Transformer2DModel:
    sizes = {"num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64, "caption_projection_dim": 1536}
    return SD3Transformer2DModel(**sizes, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm")


def make_flux_2() -> Flux2Transformer2DModel:
    sizes = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
    return Flux2Transformer2DModel(**sizes, guidance_embeds=False)


CASES = {
    "Z-Image": (ZImageTransformer2DModel, z_image_weights),
    "Qwen-Image": (QwenImageTransformer2DModel, qwen_weights),
    "FLUX.2": (make_flux_2, flux_2_weights),
    "Stable Diffusion 3": (make_sd_3, sd_3_weights),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A transformer of true size without data, with ComfyUI's weights."""
    make, weights = CASES[request.param]
    with torch.device("meta"):
        model = make()
    keys = [("transformer", name) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return type(model).__name__, keys, weights()


def test_comfyui_finds_every_layer_by_kohyas_names_with_the_rows_of_its_parts(case):
    transformer, keys, weights = case
    found = {}
    for (_, module), name in kohya_names(keys, transformer=transformer).items():
        found.setdefault(name, []).append(module)
    assert found == {f"lora_unet_{name}".replace(".", "_"): parts for name, parts in weights.items()}
    assert {module for _, module in keys} == {module for parts in found.values() for module in parts}


def test_comfyuis_and_diffusers_names_are_read_as_the_same_layers(case):
    transformer, keys, weights = case
    names = known_names(keys, transformer)
    for name, parts in weights.items():
        layers = [("transformer", part) for part in parts]
        assert names[f"diffusion_model.{name}"] == names[f"lora_unet_{name}".replace(".", "_")] == layers
        for layer in layers:
            for prefix in ("", "transformer.", "diffusion_model."):
                assert names[prefix + layer[1]] == [layer]


def test_an_unknown_transformer_has_no_names_of_kohya(case):
    _, keys, _ = case
    assert kohya_names(keys, transformer="OtherTransformer2DModel") == {}
