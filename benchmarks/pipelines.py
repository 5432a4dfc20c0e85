"""What one does to adapters in a Stable Diffusion 1.5 pipeline: `python benchmarks/pipelines.py`.

Loading from a folder, swapping in place, changing the strength, fusing and unfusing: medians of seconds, and their
ratios to one pass of the UNet at 256 px, which is half a step of drawing with guidance. The UNet has its architecture
and random weights, the adapters all its attention and feed-forward layers.

    --rounds 9     counted rounds
    --rank 8
    --smoke        everything at a size that means nothing, to see that it runs
"""

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from measure import describe_machine, interleaved, print_table, seconds

from hra_diffusion import (
    HRAConfig,
    HRAModel,
    fuse_hra,
    load_hra_weights,
    set_hra_adapters,
    unfuse_hra,
    unload_hra_weights,
)
from hra_diffusion.adapter.targets import UNET_FULL

SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "layers_per_block": 1,
}


def bare_pipeline(unet: UNet2DConditionModel) -> Any:
    """A pipeline with nothing but a UNet in it."""
    others = ("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor")
    return StableDiffusionPipeline(**dict.fromkeys(others), unet=unet, requires_safety_checker=False)


def write_adapters(unet: UNet2DConditionModel, folder: Path, rank: int) -> list[Path]:
    """Write two adapters that were never trained, but turn."""
    places = [folder / "one", folder / "two"]
    for place in places:
        model = HRAModel(unet, HRAConfig(r=rank, target_modules=UNET_FULL, init_weights=False))
        model.save_pretrained(place / "unet")
        model.unload()
    return places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    print(describe_machine())

    unet = UNet2DConditionModel(cross_attention_dim=768, **SMALL if options.smoke else {})
    pipe = bare_pipeline(unet.requires_grad_(False).eval())
    sample, prompt = torch.randn(1, 4, 32, 32), torch.randn(1, 77, 768)
    strengths = (0.5 + number / 1e6 for number in itertools.count())

    @torch.no_grad()
    def draw() -> None:
        pipe.unet(sample, 500, encoder_hidden_states=prompt)

    with tempfile.TemporaryDirectory() as folder:
        one, two = write_adapters(unet, Path(folder), options.rank)
        load_hra_weights(pipe, one, "kept")
        swapped = itertools.cycle((two, one))
        actions = {
            "one pass": draw,
            "load": lambda: load_hra_weights(pipe, two, "other"),
            "unload": lambda: unload_hra_weights(pipe, "other"),
            "swap in place": lambda: load_hra_weights(pipe, next(swapped), "kept", hotswap=True),
            "change the strength": lambda: set_hra_adapters(pipe, "kept", next(strengths)),
            "swap at that strength": lambda: load_hra_weights(pipe, next(swapped), "kept", hotswap=True),
            "back to full strength": lambda: set_hra_adapters(pipe, "kept"),
            "fuse": lambda: fuse_hra(pipe),
            "unfuse": lambda: unfuse_hra(pipe),
        }
        medians = interleaved({name: lambda each=each: seconds(each) for name, each in actions.items()}, options.rounds)
    rows = [[name, taken, taken / medians["one pass"]] for name, taken in medians.items()]
    print_table(f"SD 1.5's UNet, all layers, r = {options.rank}", ["", "s", "× one pass"], rows)


if __name__ == "__main__":
    main()
