"""Time of a pass with bound adapters beside that of one adapter for all rows: `python benchmarks/binding.py`, minutes.

    --models emoji-sd unet-sd15    the embedded base, or a UNet of workloads.py with random weights
    --rows 8 --rank 8
    --edge 16                      edge of the latents
    --passes 4 --rounds 7          passes of one activation, as of one image; rounds that take the cases in turn
    --smoke                        a tiny model, to check that the benchmark runs

Times are ratios to that of one adapter, active for all rows of the batch. A row is an image of the batch, or one half
of classifier-free guidance.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from measure import describe_machine, interleaved, print_table, seconds
from torch import nn
from workloads import UNETS

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.adapter.rows import BASE
from hra_diffusion.adapter.targets import UNET_FULL
from hra_diffusion.training.config.defaults import EMBEDDED_BASE

NAMES = ("first", "second", "third")


def load(name: str) -> UNet2DConditionModel:
    """Load the embedded base's UNet, or build one of workloads.py with random weights."""
    if name == "emoji-sd":
        return UNet2DConditionModel.from_pretrained(EMBEDDED_BASE, subfolder="unet", torch_dtype=torch.float32)
    return UNet2DConditionModel(**UNETS[name])


def adapted(model: nn.Module, rank: int) -> HRAModel:
    """Add three adapters with random rotations to a model."""
    config = HRAConfig(r=rank, target_modules=UNET_FULL)
    hra = HRAModel(model, config, NAMES[0])
    for name in NAMES[1:]:
        hra.add_adapter(name, config)
    with torch.no_grad():
        for weight in hra.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.1)
    hra.set_adapter(NAMES[0])
    return hra.requires_grad_(False).eval()


def cases(model: HRAModel, rows: int) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """Return the activations, the rows of the table."""
    first = NAMES[0]
    bound: dict[str, Sequence[str]] = {
        "the same adapter bound to all rows": [first] * rows,
        "an adapter bound to three of four rows": [BASE if row % 4 == 3 else first for row in range(rows)],
        "an adapter bound to half of the rows": [BASE if row % 2 else first for row in range(rows)],
        "three adapters in turn": [NAMES[row % len(NAMES)] for row in range(rows)],
    }
    return {
        "one adapter for all rows": nullcontext,
        "base model": model.disable_adapter,
        **{name: partial(model._activation.rows, names) for name, names in bound.items()},
    }


def measure(name: str, options: argparse.Namespace) -> list[list[object]]:
    """Return the rows of a model."""
    unet = load(name)
    shape = (options.rows, unet.config["in_channels"], options.edge, options.edge)
    sample, words = torch.randn(shape), torch.randn(options.rows, 24, unet.config["cross_attention_dim"])
    model = adapted(unet, options.rank)

    def duration(activate: Callable[[], AbstractContextManager[Any]]) -> float:
        def passes() -> None:
            with activate():
                for _ in range(options.passes):
                    model(sample, torch.tensor(500), words)

        return seconds(passes) / options.passes

    actions = {case: partial(duration, activate) for case, activate in cases(model, options.rows).items()}
    with torch.inference_mode():
        times = interleaved(actions, options.rounds)
    reference = times["one adapter for all rows"]
    return [[name, case, f"{time:.3f} s", f"× {time / reference:.3f}"] for case, time in times.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=("emoji-sd", *UNETS), default=["emoji-sd", "unet-sd15"])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--edge", type=int, default=16)
    parser.add_argument("--passes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.models, options.passes, options.rounds = ["unet-smoke"], 1, 1
    print(describe_machine())
    torch.manual_seed(0)
    rows = [row for name in options.models for row in measure(name, options)]
    print_table(f"{options.rows} rows, r = {options.rank}", ["", "", "a pass", "ratio"], rows)


if __name__ == "__main__":
    main()
