"""Module names of transformers in their original code, whose layers may hold several of diffusers', one above another.

    diffusers                                  original
    Z-Image
    layers.i.attention.to_q, to_k, to_v        layers.i.attention.qkv
    layers.i.attention.to_out.0                layers.i.attention.out
    all_x_embedder.2-1, all_final_layer.2-1    x_embedder, final_layer
    Qwen-Image                                 the same
    FLUX.1, Chroma
    transformer_blocks.i.attn.to_q, …          double_blocks.i.img_attn.qkv, of add_q_proj, … txt_attn.qkv
    single_transformer_blocks.i.attn.to_q, …   single_blocks.i.linear1, of to_q, to_k, to_v and proj_mlp
    norm_out.linear                            final_layer.adaLN_modulation.1, the halves of whose rows are swapped
    FLUX.2                                     as FLUX.1
    single_….i.attn.to_qkv_mlp_proj, to_out    single_blocks.i.linear1, linear2
    Stable Diffusion 3
    transformer_blocks.i.attn.to_q, …          joint_blocks.i.x_block.attn.qkv, of add_q_proj, … context_block.attn.qkv
    norm_out.linear                            as FLUX.1; also swapped: norm1_context.linear of the last block

diffusers has scale and shift in the other order where the halves are swapped.

Source: the original codes, and the tables of comfy/utils.py and comfy/lora.py, by which ComfyUI reads LoRAs.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final

_DOUBLE: Final = r"transformer_blocks\.(\d+)"
_SINGLE: Final = r"single_transformer_blocks\.(\d+)"
_ATTENTION: Final = (
    *((rf"{_DOUBLE}\.attn\.to_{part}", r"double_blocks.\1.img_attn.qkv") for part in "qkv"),
    *((rf"{_DOUBLE}\.attn\.add_{part}_proj", r"double_blocks.\1.txt_attn.qkv") for part in "qkv"),
    (rf"{_DOUBLE}\.attn\.to_out\.0", r"double_blocks.\1.img_attn.proj"),
    (rf"{_DOUBLE}\.attn\.to_add_out", r"double_blocks.\1.txt_attn.proj"),
)


def _outside_of_blocks(embedder: str) -> tuple[tuple[str, str], ...]:
    """Return the patterns of layers that FLUX.1 and FLUX.2 have outside of their blocks, but for an embedder's name."""
    part = rf"{embedder}\.(time|guidance)(step)?_embedder"
    return (
        (r"x_embedder", "img_in"),
        (r"context_embedder", "txt_in"),
        (rf"{part}\.linear_1", r"\1_in.in_layer"),
        (rf"{part}\.linear_2", r"\1_in.out_layer"),
        (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
        (r"proj_out", "final_layer.linear"),
    )


_FLUX_1: Final = (
    *_ATTENTION,
    *_outside_of_blocks("time_text_embed"),
    *((rf"{_DOUBLE}\.ff\.net\.{part}", rf"double_blocks.\1.img_mlp.{part[0]}") for part in ("0.proj", "2")),
    *((rf"{_DOUBLE}\.ff_context\.net\.{part}", rf"double_blocks.\1.txt_mlp.{part[0]}") for part in ("0.proj", "2")),
    (rf"{_DOUBLE}\.norm1\.linear", r"double_blocks.\1.img_mod.lin"),
    (rf"{_DOUBLE}\.norm1_context\.linear", r"double_blocks.\1.txt_mod.lin"),
    *((rf"{_SINGLE}\.attn\.to_{part}", r"single_blocks.\1.linear1") for part in "qkv"),
    (rf"{_SINGLE}\.proj_mlp", r"single_blocks.\1.linear1"),
    (rf"{_SINGLE}\.proj_out", r"single_blocks.\1.linear2"),
    (rf"{_SINGLE}\.norm\.linear", r"single_blocks.\1.modulation.lin"),
    (r"time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
    (r"time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
    (r"(distilled_guidance_layer\.layers\.\d+)\.linear_1", r"\1.in_layer"),
    (r"(distilled_guidance_layer\.layers\.\d+)\.linear_2", r"\1.out_layer"),
)

_FLUX_2: Final = (
    *_ATTENTION,
    *_outside_of_blocks("time_guidance_embed"),
    (rf"{_DOUBLE}\.ff\.linear_in", r"double_blocks.\1.img_mlp.0"),
    (rf"{_DOUBLE}\.ff\.linear_out", r"double_blocks.\1.img_mlp.2"),
    (rf"{_DOUBLE}\.ff_context\.linear_in", r"double_blocks.\1.txt_mlp.0"),
    (rf"{_DOUBLE}\.ff_context\.linear_out", r"double_blocks.\1.txt_mlp.2"),
    (rf"{_SINGLE}\.attn\.to_qkv_mlp_proj", r"single_blocks.\1.linear1"),
    (rf"{_SINGLE}\.attn\.to_out", r"single_blocks.\1.linear2"),
    (r"(.+_stream_modulation.*)\.linear", r"\1.lin"),
)

_SD_3: Final = (
    *(
        (rf"{_DOUBLE}\.{attention}\.to_{part}", rf"joint_blocks.\1.x_block.{attention}.qkv")
        for attention in ("attn", "attn2")
        for part in "qkv"
    ),
    *((rf"{_DOUBLE}\.attn\.add_{part}_proj", r"joint_blocks.\1.context_block.attn.qkv") for part in "qkv"),
    (rf"{_DOUBLE}\.(attn2?)\.to_out\.0", r"joint_blocks.\1.x_block.\2.proj"),
    (rf"{_DOUBLE}\.attn\.to_add_out", r"joint_blocks.\1.context_block.attn.proj"),
    *(
        (rf"{_DOUBLE}\.{ours}\.{layer}", rf"joint_blocks.\1.{theirs}.{original}")
        for ours, theirs in (("ff", "x_block"), ("ff_context", "context_block"))
        for layer, original in ((r"net\.0\.proj", "mlp.fc1"), (r"net\.2", "mlp.fc2"))
    ),
    (rf"{_DOUBLE}\.norm1\.linear", r"joint_blocks.\1.x_block.adaLN_modulation.1"),
    (rf"{_DOUBLE}\.norm1_context\.linear", r"joint_blocks.\1.context_block.adaLN_modulation.1"),
    (r"pos_embed\.proj", "x_embedder.proj"),
    (r"time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
    (r"time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
    (r"time_text_embed\.text_embedder\.linear_1", "y_embedder.mlp.0"),
    (r"time_text_embed\.text_embedder\.linear_2", "y_embedder.mlp.2"),
    (r"norm_out\.linear", "final_layer.adaLN_modulation.1"),
    (r"proj_out", "final_layer.linear"),
)

# Patterns of diffusers' names and the original names, by the class of the transformer. Modules of one original name are
# one layer, whose rows are theirs in the order of the patterns.
_RULES: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "ZImageTransformer2DModel": (
        (r"(.+\.attention)\.to_q", r"\1.qkv"),
        (r"(.+\.attention)\.to_k", r"\1.qkv"),
        (r"(.+\.attention)\.to_v", r"\1.qkv"),
        (r"(.+\.attention)\.to_out\.0", r"\1.out"),
        (r"all_(x_embedder|final_layer)\.2-1(.*)", r"\1\2"),
    ),
    "QwenImageTransformer2DModel": (),
    "FluxTransformer2DModel": _FLUX_1,
    "Flux2Transformer2DModel": _FLUX_2,
    "ChromaTransformer2DModel": _FLUX_1,
    "SD3Transformer2DModel": _SD_3,
}
_SWAPPED: Final = ("FluxTransformer2DModel", "Flux2Transformer2DModel", "SD3Transformer2DModel")


def original_names_of(transformer: str, modules: Iterable[str]) -> dict[str, str]:
    """Return the original names of a transformer's modules, by diffusers' names; none for an unknown class.

    Args:
        transformer: the name of the class in diffusers.
        modules: diffusers' names.

    Returns:
        Original names; the modules of one original layer are in the order of their rows. See :func:`swapped_modules`.
    """
    if transformer not in _RULES:
        return {}
    named: list[tuple[int, str, str]] = []
    for module in modules:
        for index, (pattern, original) in enumerate(_RULES[transformer]):
            if match := re.fullmatch(pattern, module):
                named.append((index, module, match.expand(original)))
                break
        else:
            named.append((len(_RULES[transformer]), module, module))
    return {module: original for _, module, original in sorted(named, key=lambda item: item[0])}


def swapped_modules(transformer: str | None, modules: Iterable[str]) -> set[str]:
    """Return the modules of a transformer whose rows' halves are swapped in the original code.

    Args:
        transformer: the name of the class in diffusers.
        modules: diffusers' names of all modules; in the last block of Stable Diffusion 3 the prompt has no output.
    """
    if transformer not in _SWAPPED:
        return set()
    modules = set(modules)
    blocks = [match[1] for module in modules if (match := re.fullmatch(rf"({_DOUBLE})\.norm1_context\.linear", module))]
    last = [block for block in blocks if f"{block}.attn.to_add_out" not in modules]
    return modules & {"norm_out.linear", *(f"{block}.norm1_context.linear" for block in last)}
