"""The optimiser for reflections: its learning rate is an angle, the same at every rank and width."""

import math

import pytest
import torch
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.householder.chain import chain_matrix
from hra_diffusion.training.config import OptimiserConfig
from hra_diffusion.training.optimisers import build_optimizer, retract


def adapted(width: int, rank: int) -> HRAModel:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(width, width, bias=False))
    nn.init.normal_(model[0].weight, std=width**-0.5, generator=generator)
    return HRAModel(model, HRAConfig(r=rank, target_modules=["0"]), generator=generator)


def columns(model: HRAModel) -> torch.Tensor:
    return next(parameter for parameter in model.parameters() if parameter.requires_grad)


def step(model: HRAModel, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x, y = torch.randn(2, 64, columns(model).shape[0], generator=torch.Generator().manual_seed(seed))
    (model(x) - y).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("width", [16, 64, 320, 1280])
@pytest.mark.parametrize("rank", [2, 8, 32])
def test_the_first_step_moves_the_rotation_by_the_learning_rate(width, rank):
    if rank > width:
        pytest.skip("more columns than dimensions")
    model = adapted(width, rank)
    step(model, build_optimizer({"unet": model}, {"unet": 1e-3}, OptimiserConfig()), seed=0)
    moved = (chain_matrix(columns(model).double()) - torch.eye(width)).norm().item()
    assert moved == pytest.approx(1e-3, rel=0.25)


@pytest.mark.parametrize("length", [1e-3, 1.0, 50.0])
def test_the_length_of_the_columns_does_not_matter(length):
    results = []
    for scale in (1.0, length):
        model = adapted(32, 4)
        with torch.no_grad():
            columns(model).mul_(scale)
        optimizer = build_optimizer({"unet": model}, {"unet": 0.05}, OptimiserConfig())
        for seed in range(5):
            step(model, optimizer, seed)
        results.append(columns(model).detach())
    assert torch.allclose(*results, atol=1e-3)


def test_columns_keep_their_length_however_long_training_goes_on():
    model = adapted(32, 4)
    optimizer = build_optimizer({"unet": model}, {"unet": 0.5}, OptimiserConfig())
    for seed in range(30):
        step(model, optimizer, seed)
    assert torch.allclose(columns(model).norm(dim=0), torch.full((4,), math.sqrt(32)), rtol=1e-5)


def test_retraction_does_not_change_the_rotation():
    u = torch.randn(24, 6, dtype=torch.float64) * torch.tensor([0.01, 1, 2, 3, 40, 500])
    before = chain_matrix(u)
    retract([u])
    assert torch.allclose(chain_matrix(u), before, atol=1e-12)


def test_a_zero_column_stays_a_missing_reflection():
    u = torch.randn(8, 2)
    u[:, 1] = 0
    retract([u])
    assert u[:, 1].abs().max() == 0
    assert u.isfinite().all()


def test_components_have_learning_rates_of_their_own():
    models = {"unet": adapted(16, 4), "text_encoder": adapted(16, 4)}
    optimizer = build_optimizer(models, {"unet": 0.1, "text_encoder": 0.01}, OptimiserConfig())
    rates = {group["component"]: group["lr"] / group["lr_per_radian"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"unet": 0.1, "text_encoder": 0.01})
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}
