"""Launches of a step outside the model: a few operations for all layers together."""

import pytest
import torch
from torch import nn

from hra_diffusion.training.config import OptimizerConfig
from hra_diffusion.training.devices.live_bytes import LiveBytes
from hra_diffusion.training.loop.ema import EMA
from hra_diffusion.training.loop.optimizers import build_optimizer

# Layers of SDXL's UNet by the number of their inputs: its attention, and all linear layers.
ATTENTION = {640: 60, 1280: 360, 2048: 140}
ALL_LINEAR = {640: 80, 1280: 432, 2048: 140, 2560: 10, 5120: 60}


def columns_of(layers: dict[int, int], rank: int) -> nn.Module:
    """Return a module with random columns for each layer."""
    model = nn.Module()
    for d, count in layers.items():
        for layer in range(count):
            model.add_module(f"{d}_{layer}", nn.ParameterDict({"hra_u_default": nn.Parameter(torch.randn(d, rank))}))
    return model


@pytest.mark.parametrize(("layers", "most"), [(ATTENTION, 40), (ALL_LINEAR, 50)])
def test_the_optimizer_retraction_ema_and_clipping_take_few_launches_on_sdxl(layers, most):
    model = columns_of(layers, rank=8)
    weights = dict(model.named_parameters())
    optimizer = build_optimizer({"unet": model}, {"unet": 1e-3}, OptimizerConfig())
    ema = EMA(weights, 0.99)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    with LiveBytes() as counted, torch.no_grad():
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        ema.update(weights, 2)
    assert counted.launches <= most
