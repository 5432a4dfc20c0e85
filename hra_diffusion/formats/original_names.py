"""Module names of a UNet in its original code, as in single files and in kohya's SDXL LoRAs.

    diffusers                            original
    conv_in, conv_norm_out, conv_out     input_blocks.0.0, out.0, out.2
    time_embedding.linear_1, …_2         time_embed.0, time_embed.2
    add_embedding.linear_1, …_2          label_emb.0.0, label_emb.0.2
    down_blocks.b.resnets.i              input_blocks.n.0,  n = 1 + b (L + 1) + i,  with L resnets a block
    down_blocks.b.attentions.i           input_blocks.n.1
    down_blocks.b.downsamplers.0.conv    input_blocks.n.0.op,  i = L
    mid_block.resnets.i, attentions.0    middle_block.2i, middle_block.1
    up_blocks.b.resnets.i                output_blocks.n.0,  n = b (L + 1) + i
    up_blocks.b.attentions.i             output_blocks.n.1
    up_blocks.b.upsamplers.0.conv        output_blocks.n.1.conv, or n.2.conv behind an attention,  i = L

Source: CompVis/stable-diffusion (ldm) and Stability-AI/generative-models (sgm), openaimodel.py.
"""

import re
from collections.abc import Iterable
from typing import Final

_FIXED: Final = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_PARTS: Final = {
    "resnets": {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    },
    "downsamplers": {"conv": "op"},
}
_BLOCK: Final = re.compile(
    r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)"
)


def original_names(modules: Iterable[str]) -> dict[str, str]:
    """Return the original names of a UNet's modules, by diffusers' names; some modules have none.

    Args:
        modules: diffusers' names of all modules; the numbers of layers and attentions are derived from them.
    """
    modules = list(modules)
    layers = len({name.split(".")[3] for name in modules if name.startswith("down_blocks.0.resnets.")})
    with_attention = {name.split(".")[1] for name in modules if re.match(r"up_blocks\.\d+\.attentions\.", name)}
    named = {name: _FIXED[name] for name in modules if name in _FIXED}
    for name in modules:
        if match := _BLOCK.fullmatch(name):
            side, block, kind, index, part = match.groups()
            part = _PARTS.get(kind, {}).get(part, part)
            if side == "mid":
                named[name] = f"middle_block.{2 * int(index) if kind == 'resnets' else 1}.{part}"
            else:
                number = int(block) * (layers + 1) + (layers if kind.endswith("samplers") else int(index))
                slot = {"attentions": 1, "upsamplers": 2 if block in with_attention else 1}.get(kind, 0)
                number, blocks = (number + 1, "input_blocks") if side == "down" else (number, "output_blocks")
                named[name] = f"{blocks}.{number}.{slot}.{part}"
    return named
