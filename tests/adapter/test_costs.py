"""Launches and memory of a training step and of an inference pass, counted on models without data.

The tensors are the CPU's. See docs/benchmarks.md for those of a GPU, which a build of torch for CUDA has.
"""

import sys
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_iter

from hra_diffusion.adapter.targets import UNET_ATTENTION, UNET_FULL
from hra_diffusion.training.devices.live_bytes import LiveBytes

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
try:
    from launches import FROZEN, KERNELS, LORA, OURS, count
finally:
    sys.path.pop(0)

FACTORING = 30
"""Launches of the node that owns the factors of a shape, in a forward pass and in a backward pass."""

MODELS = [
    pytest.param("unet-smoke", UNET_ATTENTION, 16, 2, id="tiny"),
    pytest.param("unet-sd15", UNET_FULL, 192, 6, id="SD 1.5, all layers", marks=pytest.mark.slow),
    pytest.param("unet-sdxl", UNET_ATTENTION, 560, 3, id="SDXL", marks=pytest.mark.slow),
]

counted = cache(partial(count, rank=8))


class Watched(LiveBytes):
    """Lists, besides, operations with results in float64. Without data, reading a value raises."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        results = [leaf for leaf in tree_iter(result) if isinstance(leaf, torch.Tensor)]
        self.found.extend(str(func) for tensor in results if tensor.dtype == torch.float64)
        return result


@pytest.mark.parametrize("contender", [OURS, KERNELS])
def test_a_step_and_an_inference_pass_read_no_value_and_have_no_float64(contender):
    found = []
    count("unet-smoke", contender, UNET_ATTENTION, 8, counter=partial(Watched, found))
    assert found == []


@pytest.mark.parametrize(("name", "targets", "layers", "shapes"), MODELS)
def test_launches_per_layer_have_an_upper_bound(name, targets, layers, shapes):
    frozen, ours = (counted(name, contender, targets) for contender in (FROZEN, OURS))
    forward, backward, inference, weaker = (a - b for a, b in zip(ours[:4], frozen[:4], strict=True))
    assert forward <= 3 * layers + FACTORING * shapes
    assert backward <= 8 * layers + FACTORING * shapes
    assert inference == weaker == 3 * layers


@pytest.mark.parametrize(("name", "targets", "layers", "shapes"), MODELS[:2])
def test_fused_kernels_have_one_launch_forward_and_two_backward(name, targets, layers, shapes):
    pytest.importorskip("triton")
    frozen, ours = (counted(name, contender, targets) for contender in (FROZEN, KERNELS))
    forward, backward, inference, weaker = (a - b for a, b in zip(ours[:4], frozen[:4], strict=True))
    of_prompts = layers // 4  # The frozen model computes no gradient of the inputs of these layers.
    assert forward <= layers + FACTORING * shapes
    assert backward <= 2 * layers + of_prompts + FACTORING * shapes
    assert inference == weaker == layers


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers"), [("unet-sd15", 128)])
def test_a_layer_at_true_size_has_four_launches_forward_and_eight_backward(name, layers):
    frozen, ours, kernels = (counted(name, contender, UNET_ATTENTION) for contender in (FROZEN, OURS, KERNELS))
    assert ours.forward - frozen.forward <= 4 * layers
    assert ours.backward - frozen.backward <= 8 * layers
    assert kernels.forward - frozen.forward <= 2 * layers
    assert kernels.backward - frozen.backward <= 3 * layers


@pytest.mark.parametrize("name", ["unet-smoke"])
def test_launches_are_fewer_than_those_of_a_lora(name):
    ours, lora = (counted(name, contender, UNET_ATTENTION, checkpointing=True) for contender in (OURS, LORA))
    assert ours.forward + ours.backward < lora.forward + lora.backward
    assert ours.inference_at_strength == ours.inference < lora.inference


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "contender", "checkpointing"), [("unet-sd15", KERNELS, False), ("unet-sdxl", OURS, True)]
)
def test_a_step_needs_little_more_memory_than_that_of_the_frozen_model(name, contender, checkpointing):
    frozen, ours = (
        counted(name, adapter, UNET_ATTENTION, checkpointing=checkpointing) for adapter in (FROZEN, contender)
    )
    assert ours.peak <= 1.015 * frozen.peak
