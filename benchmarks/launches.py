"""Launches and memory of a step and of an inference pass, counted without a GPU: `python benchmarks/launches.py`.

    --only unet-sd15 unet-sdxl   some of the models
    --rank 8
    --smoke                      tiny models, to check that the benchmark runs

Operations of the real models at their true size run on tensors without data (FakeTensorMode), in float16 with
autocasting in a step. Each that computes is one launch: views, and allocations of empty memory, are none; see
`LiveBytes`. On a GPU an operation may have several kernels, and `torch._foreach_*` counts as one. A CPU build of torch
has no tensors of a GPU: there, normalizations are computed in float16 and not cast. In inference adapters are frozen.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from core import FROZEN, LORA, OURS, peers
from measure import print_table
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from workloads import WORKLOADS, default_dtype

from hra_diffusion import HRAModel
from hra_diffusion.adapter.targets import UNET_ATTENTION, UNET_FULL
from hra_diffusion.householder import fused
from hra_diffusion.training.devices.live_bytes import LiveBytes

KERNELS = "hra_diffusion, fused kernels"
CONTENDERS = (FROZEN, OURS, KERNELS, LORA)


class Costs(NamedTuple):
    """Launches of a forward, a backward and an inference pass, at strengths 1 and 0.7; the peak bytes of a step."""

    forward: int
    backward: int
    inference: int
    inference_at_strength: int
    peak: int


def count(
    name: str,
    contender: str,
    targets: tuple[str, ...],
    rank: int,
    *,
    checkpointing: bool = False,
    device: str = "cpu",
    counter: Callable[[], LiveBytes] = LiveBytes,
) -> Costs:
    """Count the costs of a model with an adapter, on tensors of a device without data."""
    kernels = patch.object(fused, "DEVICES", (device,) if contender == KERNELS else ())
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(device), default_dtype(torch.float16), kernels:
        model: Any = WORKLOADS[name].model()
        if checkpointing:
            model.enable_gradient_checkpointing()
        with patch.object(nn.Module, "to", lambda module, *_, **__: module):  # Tensors without data cannot be moved.
            adapted: Any = peers(targets, rank)[OURS if contender == KERNELS else contender](model)
        inputs = WORKLOADS[name].inputs(1)
        adapted.train()
        with torch.autocast(device, torch.float16):
            step, forward = _step(adapted, inputs, counter())
        _freeze(adapted.eval())
        inference = _inference(adapted, inputs, counter())
        if contender in (OURS, KERNELS):
            _weaken(adapted)
        weaker = _inference(adapted, inputs, counter())
    return Costs(forward, step.launches - forward, inference, weaker, step.peak)


def _step(adapted: nn.Module, inputs: dict[str, Any], live: LiveBytes) -> tuple[LiveBytes, int]:
    """Count a step, and its forward pass alone."""
    live.include([*adapted.parameters(), *adapted.buffers()])
    with live:
        loss = adapted(**inputs).sample.float().square().mean()
        forward = live.launches
        loss.backward()
    return live, forward


def _inference(adapted: nn.Module, inputs: dict[str, Any], live: LiveBytes) -> int:
    with torch.no_grad():
        adapted(**inputs)  # Factors of frozen columns are computed once.
        with live:
            adapted(**inputs)
    return live.launches


def _freeze(adapted: Any) -> None:
    """Freeze an adapter; the weights of others are in the model's precision, as in a pipeline."""
    if isinstance(adapted, HRAModel):
        adapted.set_adapter("default", inference_mode=True)
        return
    for module in adapted.modules():
        for name, weight in module._parameters.items():
            module._parameters[name] = None if weight is None else nn.Parameter(weight.half(), requires_grad=False)


def _weaken(adapted: Any) -> None:
    """Set the strength 0.7. Its columns depend on data: they are replaced by others of their shape."""
    for layer in adapted.adapted_layers().values():
        layer.blends.keep((("default", 0.7),), layer.hra_u["default"].detach().clone())
    adapted.set_strength(0.7)


def table(name: str, targets: tuple[str, ...], rank: int, contenders: Sequence[str]) -> list[list[object]]:
    """Return the rows of the table of one model."""
    rows: list[list[object]] = []
    for contender in contenders:
        plain, checkpointed = (count(name, contender, targets, rank, checkpointing=on) for on in (False, True))
        peaks = [f"{costs.peak / 1e9:.3f}" for costs in (plain, checkpointed)]
        rows.append([contender, *plain[:2], checkpointed.backward, *plain[2:4], *peaks])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=("unet-sd15", "unet-sdxl"), default=["unet-sd15", "unet-sdxl"])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    columns = ["", "forward", "backward", "with checkpointing", "inference", "at 0.7", "GB", "with checkpointing"]
    for name in ["unet-smoke"] if options.smoke else options.only:
        for kind, targets in (("attention", UNET_ATTENTION), ("attention and feed-forward", UNET_FULL)):
            print_table(f"{name}, {kind}, r = {options.rank}", columns, table(name, targets, options.rank, CONTENDERS))


if __name__ == "__main__":
    main()
