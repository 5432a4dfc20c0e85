"""Launches of a step and of an inference pass, counted without a GPU: `python benchmarks/launches.py`.

    --only unet-sd15 unet-sdxl   some of the models (see MODELS)
    --rank 8
    --smoke                      tiny models, to check that the benchmark runs

Operations of the real models at their true size run on tensors without data (FakeTensorMode). Each that computes is
one launch: views, and allocations of empty memory, are none. On a GPU an operation may have several kernels, such as a
norm, and the weights are cast by autocasting, which runs in float16 here. `torch._foreach_*` counts as one.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import torch
from core import FROZEN, LORA, OURS, default_dtype, peers
from measure import print_table
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hra_diffusion.adapter.targets import UNET_ATTENTION, UNET_FULL

_NO_LAUNCH = {"detach", "device", "promote_types", "_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty"}


class Launches(TorchDispatchMode):
    """Counts operations that compute within a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        is_view = any(ret.alias_info is not None and not ret.alias_info.is_write for ret in func._schema.returns)
        if not is_view and name not in _NO_LAUNCH:
            self.counts[name] += 1
        return result

    @property
    def total(self) -> int:
        return sum(self.counts.values())


SIZES: dict[str, dict[str, Any]] = {
    "unet-sd15": {"cross_attention_dim": 768},
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
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    },
}


def count(name: str, contender: str, targets: tuple[str, ...], rank: int, *, checkpointing: bool) -> list[int]:
    """Return the launches of a forward pass, a backward pass and an inference pass."""
    from diffusers import UNet2DConditionModel

    with FakeTensorMode(allow_non_fake_inputs=True):
        with default_dtype(torch.float16):
            model: Any = UNet2DConditionModel(**SIZES[name])
        if checkpointing:
            model.enable_gradient_checkpointing()
        with patch.object(nn.Module, "to", lambda module, *_, **__: module):  # Tensors without data cannot be moved.
            adapted = peers(targets, rank)[contender](model)
        adapted.train()
        inputs = unet_inputs(SIZES[name])
        with torch.autocast("cpu", torch.float16):
            run = lambda: adapted(**inputs).sample  # noqa: E731
            with Launches() as forward:
                loss = run().float().square().mean()
            with Launches() as backward:
                loss.backward()
            adapted.eval()
            with torch.no_grad(), suppress(AttributeError):
                run()
                with Launches() as inference:
                    run()
    return [forward.total, backward.total, inference.total]


def unet_inputs(size: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs of a UNet, for images of 512 or 1024 px."""
    edge = size.get("sample_size", 64)
    inputs: dict[str, Any] = {
        "sample": torch.randn(1, 4, edge, edge, dtype=torch.float16, requires_grad=True),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 77, size["cross_attention_dim"], dtype=torch.float16),
    }
    if "addition_embed_type" in size:
        inputs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(1, 1280, dtype=torch.float16),
            "time_ids": torch.zeros(1, 6, dtype=torch.float16),
        }
    return inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    for name in ["unet-smoke"] if options.smoke else options.only or ["unet-sd15", "unet-sdxl"]:
        for kind, targets in (("attention", UNET_ATTENTION), ("attention and feed-forward", UNET_FULL)):
            for checkpointing in (False, True):
                rows = [
                    [contender, *count(name, contender, targets, options.rank, checkpointing=checkpointing)]
                    for contender in (FROZEN, OURS, LORA)
                ]
                title = f"{name}, {kind}, r = {options.rank}{', gradient checkpointing' * checkpointing}"
                print_table(title, ["", "forward", "backward", "inference"], rows)


if __name__ == "__main__":
    main()
