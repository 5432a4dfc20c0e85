"""Time of adapter operations in a Stable Diffusion 1.5 pipeline: `python benchmarks/pipelines.py`.

Loading from a folder, swapping in place, changing the strength, fusing and unfusing: medians of seconds, and their
ratios to one pass of the UNet at 256 px, which is half a step of generating with guidance. The UNet has the original
architecture and random weights, the adapters are in all its attention and feed-forward layers.

    --rounds 9     counted rounds
    --rank 8
    --smoke        a test run at a tiny size
"""

import argparse
import itertools
import tempfile
from pathlib import Path

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
from hra_diffusion.pipelines import Pipeline

SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "layers_per_block": 1,
}


def bare_pipeline(unet: UNet2DConditionModel) -> Pipeline:
    """Return a pipeline with a UNet alone."""
    others = ("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor")
    return StableDiffusionPipeline(**dict.fromkeys(others), unet=unet, requires_safety_checker=False)


def write_adapters(unet: UNet2DConditionModel, folder: Path, rank: int) -> list[Path]:
    """Write two untrained adapters with random rotations."""
    folders = [folder / "one", folder / "two"]
    for adapter_folder in folders:
        model = HRAModel(unet, HRAConfig(r=rank, target_modules=UNET_FULL, init_weights=False))
        model.save_pretrained(adapter_folder / "unet")
        model.unload()
    return folders


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
    def denoise() -> None:
        pipe.unet(sample, 500, encoder_hidden_states=prompt)

    with tempfile.TemporaryDirectory() as folder:
        one, two = write_adapters(unet, Path(folder), options.rank)
        load_hra_weights(pipe, one, "kept")
        swapped = itertools.cycle((two, one))
        actions = {
            "one pass": denoise,
            "load": lambda: load_hra_weights(pipe, two, "other"),
            "unload": lambda: unload_hra_weights(pipe, "other"),
            "swap in place": lambda: load_hra_weights(pipe, next(swapped), "kept", hotswap=True),
            "change the strength": lambda: set_hra_adapters(pipe, "kept", next(strengths)),
            "swap at that strength": lambda: load_hra_weights(pipe, next(swapped), "kept", hotswap=True),
            "back to full strength": lambda: set_hra_adapters(pipe, "kept"),
            "fuse": lambda: fuse_hra(pipe),
            "unfuse": lambda: unfuse_hra(pipe),
        }
        medians = interleaved({name: lambda run=run: seconds(run) for name, run in actions.items()}, options.rounds)
    rows = [[name, taken, taken / medians["one pass"]] for name, taken in medians.items()]
    print_table(f"SD 1.5's UNet, all layers, r = {options.rank}", ["", "s", "× one pass"], rows)


if __name__ == "__main__":
    main()
