"""Models of the benchmarks at their true sizes, with random weights, and their inputs.

Tensors are created in torch's default dtype and on its default device: see `default_dtype` and `torch.device`.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from hra_diffusion.adapter.targets import UNET_ATTENTION

UNETS: dict[str, dict[str, Any]] = {
    "unet-sd15": {"sample_size": 64, "cross_attention_dim": 768},
    "unet-sdxl": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "unet-smoke": {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
}
"""UNets of Stable Diffusion 1.5 and SDXL, and a tiny one; for images of 512, 1024 and 64 px."""

FLUX: dict[str, dict[str, Any]] = {
    "flux-stack": {"num_layers": 2, "num_single_layers": 4, "guidance_embeds": True},
    "flux-smoke": {
        "num_layers": 1,
        "num_single_layers": 1,
        "in_channels": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (2, 2, 4),
        "guidance_embeds": True,
    },
}
"""Six of FLUX.1's 57 blocks at its width, and tiny ones; for images of 1024 and 64 px."""

FLUX_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class Workload(NamedTuple):
    """A model, its inputs by the number of images, and its target modules."""

    model: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, Any]]
    targets: tuple[str, ...]


def _unet(name: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**UNETS[name])


def _unet_inputs(name: str, images: int) -> dict[str, Any]:
    size = UNETS[name]
    edge = size["sample_size"]
    inputs: dict[str, Any] = {
        "sample": torch.randn(images, 4, edge, edge, requires_grad=True),
        "timestep": torch.full((images,), 500),
        "encoder_hidden_states": torch.randn(images, 77, size["cross_attention_dim"]),
    }
    if "addition_embed_type" in size:
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(images, 1280), "time_ids": torch.zeros(images, 6)}
    return inputs


def _flux(name: str) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(**FLUX[name])


def _flux_inputs(name: str, images: int) -> dict[str, Any]:
    size = FLUX[name]
    side, tokens = (4, 8) if name == "flux-smoke" else (64, 512)
    return {
        "hidden_states": torch.randn(images, side * side, size.get("in_channels", 64), requires_grad=True),
        "encoder_hidden_states": torch.randn(images, tokens, size.get("joint_attention_dim", 4096)),
        "pooled_projections": torch.randn(images, size.get("pooled_projection_dim", 768)),
        "timestep": torch.full((images,), 0.5),
        "guidance": torch.full((images,), 3.5),
        "img_ids": torch.zeros(side * side, 3),
        "txt_ids": torch.zeros(tokens, 3),
    }


WORKLOADS = {
    **{name: Workload(partial(_unet, name), partial(_unet_inputs, name), UNET_ATTENTION) for name in UNETS},
    **{name: Workload(partial(_flux, name), partial(_flux_inputs, name), FLUX_ATTENTION) for name in FLUX},
}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Generator[None]:
    """Create parameters directly in a dtype: a later cast would set the peak memory."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
