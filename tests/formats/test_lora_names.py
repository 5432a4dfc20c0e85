"""A1111 and ComfyUI find the right module of Stable Diffusion 1.5 and XL for every name of a kohya file.

Both use the module names of the original code, listed by `original_layers`. Their published rules are repeated here:
A1111 rewrites kohya's names of SD 1.5 and uses those of SDXL unchanged (extensions-builtin/Lora/networks.py), ComfyUI
looks up both kinds of names (comfy/lora.py).
"""

import re

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from hra_diffusion.formats.lora import kohya_names
from hra_diffusion.formats.original_names import original_names

SD15 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
RESNET = {
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}


def adaptable(config) -> list[str]:
    """Names of all adaptable layers."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    return [name for name, module in unet.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]


def a1111(name: str) -> str:
    """A1111's rules for names of UNets."""
    name = name.removeprefix("lora_unet_")
    for pattern, target in {"conv_in": "input_blocks_0_0", "conv_out": "out_2"}.items():
        if name == pattern:
            return target
    if match := re.fullmatch(r"time_embedding_linear_(\d)", name):
        return f"time_embed_{2 * int(match[1]) - 2}"
    if match := re.fullmatch(r"(down|up)_blocks_(\d)_(attentions|resnets)_(\d)_(.+)", name):
        side, block, kind, index, rest = match.groups()
        number = 3 * int(block) + int(index) + (side == "down")
        where = f"{'input' if side == 'down' else 'output'}_blocks_{number}"
        return f"{where}_1_{rest}" if kind == "attentions" else f"{where}_0_{RESNET[rest]}"
    if match := re.fullmatch(r"mid_block_(attentions|resnets)_(\d)_(.+)", name):
        kind, index, rest = match.groups()
        return f"middle_block_1_{rest}" if kind == "attentions" else f"middle_block_{2 * int(index)}_{RESNET[rest]}"
    if match := re.fullmatch(r"down_blocks_(\d)_downsamplers_0_conv", name):
        return f"input_blocks_{3 * int(match[1]) + 3}_0_op"
    if match := re.fullmatch(r"up_blocks_(\d)_upsamplers_0_conv", name):
        return f"output_blocks_{3 * int(match[1]) + 2}_{2 if int(match[1]) else 1}_conv"
    return name


def original_layers(config) -> set[str]:
    """Names of the same layers in the original code, dots as underscores."""
    levels, depths = len(config["block_out_channels"]), config.get("transformer_layers_per_block", (1, 1, 1, 1))
    widths = config["block_out_channels"]
    names = {"time_embed_0", "time_embed_2", "input_blocks_0_0", "out_2"}
    if "addition_embed_type" in config:
        names |= {"label_emb_0_0", "label_emb_0_2"}
    for level in range(levels):
        deep = depths[level] if "Attn" in config["down_block_types"][level] else 0
        for layer in range(2):
            number = 1 + 3 * level + layer
            narrower = level > 0 and layer == 0 and widths[level] != widths[level - 1]
            names |= resnet(f"input_blocks_{number}_0", skip=narrower) | transformer(f"input_blocks_{number}_1", deep)
        if level < levels - 1:
            names.add(f"input_blocks_{3 + 3 * level}_0_op")
        mirrored = levels - 1 - level
        deep = depths[mirrored] if "Attn" in config["up_block_types"][level] else 0
        for layer in range(3):
            number = 3 * level + layer
            names |= resnet(f"output_blocks_{number}_0", skip=True) | transformer(f"output_blocks_{number}_1", deep)
        if level < levels - 1:
            names.add(f"output_blocks_{3 * level + 2}_{2 if deep else 1}_conv")
    return (
        names | resnet("middle_block_0") | transformer("middle_block_1", depths[levels - 1]) | resnet("middle_block_2")
    )


def resnet(prefix: str, *, skip: bool = False) -> set[str]:
    return {
        f"{prefix}_{part}" for part in ("in_layers_2", "out_layers_3", "emb_layers_1", *(("skip_connection",) * skip))
    }


def transformer(prefix: str, depth: int) -> set[str]:
    if not depth:
        return set()
    attention = [f"attn{i}_to_{part}" for i in (1, 2) for part in ("q", "k", "v", "out_0")]
    blocks = {
        f"transformer_blocks_{i}_{part}" for i in range(depth) for part in (*attention, "ff_net_0_proj", "ff_net_2")
    }
    return {f"{prefix}_{part}" for part in blocks | {"proj_in", "proj_out"}}


def kohya(config, *, two_text_encoders: bool) -> dict[str, str]:
    """kohya's names of a UNet's layers by diffusers'."""
    named = kohya_names([("unet", name) for name in adaptable(config)], two_text_encoders=two_text_encoders)
    return {module: name for (_, module), name in named.items()}


def test_a1111_rewrites_the_names_to_every_layer_of_stable_diffusion_1_5():
    reached = [a1111(name) for name in kohya(SD15, two_text_encoders=False).values()]
    assert len(set(reached)) == len(reached)
    assert set(reached) == original_layers(SD15)


def test_the_names_of_stable_diffusion_xl_are_the_original_ones_of_every_layer():
    names = list(kohya(SDXL, two_text_encoders=True).values())
    assert len(set(names)) == len(names)
    assert set(names) == {f"lora_unet_{name}" for name in original_layers(SDXL)}


def test_comfyui_finds_diffusers_names_with_underscores():
    names = kohya(SD15, two_text_encoders=False)
    assert len(set(names.values())) == len(adaptable(SD15))
    assert all(key == f"lora_unet_{name}".replace(".", "_") for name, key in names.items())


@pytest.mark.parametrize("config", [SD15, SDXL], ids=["SD 1.5", "SDXL"])
def test_a1111_s_rules_and_our_table_agree_on_the_position_of_attentions(config):
    for module, name in original_names(adaptable(config)).items():
        if "attentions" in module:
            assert a1111(f"lora_unet_{module}".replace(".", "_")) == name.replace(".", "_")


def test_two_text_encoders_are_distinguished_by_their_number():
    layer = "encoder.layers.3.self_attn.q_proj"
    spelled = "text_model_encoder_layers_3_self_attn_q_proj"
    for module in (layer, f"text_model.{layer}"):
        encoders = [("text_encoder", module), ("text_encoder_2", module)]
        assert list(kohya_names(encoders[:1], two_text_encoders=False).values()) == [f"lora_te_{spelled}"]
        two = [f"lora_te1_{spelled}", f"lora_te2_{spelled}"]
        assert list(kohya_names(encoders, two_text_encoders=True).values()) == two
