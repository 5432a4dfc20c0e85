"""The exact LoRA of an HRA adapter, in the layouts of other tools.

    W H − W = B A,   A (r, d) orthonormal rows,   B (out, r)

                kohya                                    diffusers                         peft
    file        one                                      one                               a folder a component
    module      lora_unet_mid_block_attentions_0_…       unet.mid_block.attentions.0.…     base_model.model.mid_block.…
    in SDXL     lora_unet_middle_block_1_…               the same                          the same
    A           .lora_down.weight                        .lora_A.weight                    .lora_A.weight
    B           .lora_up.weight                          .lora_B.weight                    .lora_B.weight
    scale       .alpha / rank                            1                                 lora_alpha / r

Every layer has the same rank, padded with zeros, and alpha = rank, so that the scale is 1 in every tool: some tools use
one layer's alpha for other layers.

kohya's layout of a transformer has the names of its original code (`lora_unet_layers_0_attention_qkv` of Z-Image). A
layer that is several of diffusers' is their LoRAs fused, of their ranks' sum (`fusing`).

All of them are read, with any scale, as are the names of older versions of diffusers (`names`, `factors`).
Other kinds of adapters are refused by name (`kinds`).

Source: the layouts are those of kohya-ss/sd-scripts, diffusers and PEFT; A1111 and ComfyUI read kohya's.
"""

from hra_diffusion.formats.lora.dora import KOHYA_MAGNITUDE
from hra_diffusion.formats.lora.factors import Factors
from hra_diffusion.formats.lora.metadata import describe
from hra_diffusion.formats.lora.names import ModuleKey, diffusers_name, kohya_names, swapped_layers
from hra_diffusion.formats.lora.reading import read_lora
from hra_diffusion.formats.lora.updates import Update, update_of, with_rank
from hra_diffusion.formats.lora.writing import (
    LAYOUTS,
    Layout,
    diffusers_tensors,
    file_bytes,
    kohya_tensors,
    peft_files,
)

__all__ = [
    "KOHYA_MAGNITUDE",
    "LAYOUTS",
    "Factors",
    "Layout",
    "ModuleKey",
    "Update",
    "describe",
    "diffusers_name",
    "diffusers_tensors",
    "file_bytes",
    "kohya_names",
    "kohya_tensors",
    "peft_files",
    "read_lora",
    "swapped_layers",
    "update_of",
    "with_rank",
]
