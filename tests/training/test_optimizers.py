"""Optimizers for reflections: the learning rate is an angle, the same at every rank and width."""

import copy
import math
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.errors import ConfigError
from hra_diffusion.householder.chain import chain_matrix
from hra_diffusion.training.config import DreamBoothConfig, OptimizerConfig
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.loop.optimizers import build_optimizer, group_by_shape, retract
from hra_diffusion.training.prepare import prepare_run

IN_8_BITS = pytest.param(
    "adamw_8bit", marks=pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
)


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
@pytest.mark.parametrize("name", ["adamw", IN_8_BITS, "schedule_free", "lion", "adafactor"])
def test_the_first_step_changes_the_rotation_by_the_learning_rate(width, rank, name):
    if rank > width:
        pytest.skip("more columns than dimensions")
    model = adapted(width, rank)
    optimizer = build_optimizer({"unet": model}, {"unet": 1e-3}, OptimizerConfig(optimizer=name))
    step(model, optimizer, seed=0)
    moved = (chain_matrix(columns(model).double()) - torch.eye(width)).norm().item()
    assert moved == pytest.approx(1e-3, rel=0.25)


@pytest.mark.parametrize("length", [1e-3, 1.0, 50.0])
def test_the_length_of_the_columns_does_not_matter(length):
    results = []
    for scale in (1.0, length):
        model = adapted(32, 4)
        with torch.no_grad():
            columns(model).mul_(scale)
        optimizer = build_optimizer({"unet": model}, {"unet": 0.05}, OptimizerConfig())
        for seed in range(5):
            step(model, optimizer, seed)
        results.append(columns(model).detach())
    assert torch.allclose(*results, atol=1e-3)


def test_columns_keep_their_length_during_training():
    model = adapted(32, 4)
    optimizer = build_optimizer({"unet": model}, {"unet": 0.5}, OptimizerConfig())
    for seed in range(30):
        step(model, optimizer, seed)
    assert torch.allclose(columns(model).norm(dim=0), torch.full((4,), math.sqrt(32)), rtol=1e-5)


def test_retraction_does_not_change_the_rotation():
    u = torch.randn(24, 6, dtype=torch.float64) * torch.tensor([0.01, 1, 2, 3, 40, 500])
    before = chain_matrix(u)
    retract([[u]])
    assert torch.allclose(chain_matrix(u), before, atol=1e-12)


def test_retraction_keeps_zero_columns_zero():
    u = torch.randn(8, 2)
    u[:, 1] = 0
    retract([[u]])
    assert u[:, 1].abs().max() == 0
    assert u.isfinite().all()


def test_columns_of_all_shapes_are_retracted_like_single_ones():
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 2), (16, 4), (8, 2), (16, 2)]
    together = [torch.randn(shape, generator=generator) for shape in shapes]
    alone = [columns.clone() for columns in together]
    retract(group_by_shape(together))
    for columns, expected in zip(together, alone, strict=True):
        assert torch.allclose(columns, expected * math.sqrt(len(expected)) / expected.norm(dim=0))
    retract([])


def test_a_state_of_adamws_loop_over_layers_loads_and_continues_in_one_kernel():
    """Checkpoints of earlier versions have it."""
    config, model, looped = OptimizerConfig(), adapted(16, 4), adapted(16, 4)
    groups = [{"params": [columns(looped)], "lr": 0.01, "lr_per_radian": 1.0, "component": "unet"}]
    loop = torch.optim.AdamW(groups, betas=(config.adam_beta1, config.adam_beta2), weight_decay=0.0)
    step(looped, loop, seed=0)
    kernel = build_optimizer({"unet": model}, {"unet": 0.01}, config)
    kernel.load_state_dict(copy.deepcopy(loop.state_dict()))
    assert kernel.param_groups[0]["fused"]
    with torch.no_grad():
        columns(model).copy_(columns(looped))
    for seed in range(1, 4):
        before = columns(looped).detach().clone()
        step(looped, loop, seed)
        retract([[columns(looped)]])
        step(model, kernel, seed)
        assert torch.allclose(columns(model), columns(looped), atol=1e-5)
        assert not torch.allclose(columns(model), before, atol=1e-3)


def test_fp16s_scaler_skips_a_step_of_adamws_kernel_without_reading_the_gradient():
    model = adapted(16, 4)
    optimizer = build_optimizer({"unet": model}, {"unet": 0.1}, OptimizerConfig())
    scaler = torch.amp.GradScaler("cpu")
    before = columns(model).detach().clone()
    for gradient, changes in ((math.inf, False), (1.0, True)):
        columns(model).grad = torch.full_like(before, gradient)
        scaler.scale(torch.ones(1))
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        assert columns(model).isfinite().all()
        assert torch.allclose(columns(model), before, atol=1e-6) != changes


def test_components_have_separate_learning_rates():
    models = {"unet": adapted(16, 4), "text_encoder": adapted(16, 4)}
    optimizer = build_optimizer(models, {"unet": 0.1, "text_encoder": 0.01}, OptimizerConfig())
    rates = {group["component"]: group["lr"] / group["lr_per_radian"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"unet": 0.1, "text_encoder": 0.01})
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0}


@pytest.mark.parametrize("name", ["adamw", IN_8_BITS, "schedule_free", "prodigy", "lion", "adafactor"])
def test_weights_other_than_reflections_move_from_zero_by_their_rate(name):
    """As those of the condition encoder's last convolution do."""
    model, ordinary = adapted(16, 4), nn.Linear(16, 16, bias=False)
    nn.init.zeros_(ordinary.weight)
    config, rates = OptimizerConfig(optimizer=name), {"unet": 0.02, "condition_encoder": 0.01}
    optimizer = build_optimizer({"unet": model}, rates, config, {"condition_encoder": ordinary})
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(5):
        (ordinary(model(x)) - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    size = ordinary.weight.detach().square().mean().sqrt().item()
    assert size > 1e-4 if name == "prodigy" else 0.01 < size < 0.05


OTHERS = [IN_8_BITS, "schedule_free", "prodigy", "lion", "adafactor"]


@pytest.mark.parametrize("name", ["adamw", *OTHERS])
def test_every_optimizer_learns_without_changing_the_columns_lengths(name):
    """The target: the reflections of another adapter on the same weight."""
    model, teacher = adapted(16, 4), adapted(16, 4)
    with torch.no_grad():
        columns(teacher).copy_(torch.randn(16, 4, generator=torch.Generator().manual_seed(1)))
    optimizer = build_optimizer({"unet": model}, {"unet": 0.2}, OptimizerConfig(optimizer=name))
    losses = []
    for seed in range(150):
        x = torch.randn(64, 16, generator=torch.Generator().manual_seed(seed))
        loss = (model(x) - teacher(x).detach()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])
    assert torch.allclose(columns(model).norm(dim=0), torch.full((4,), 4.0), rtol=1e-5)
    assert all(group["weight_decay"] == 0 for group in optimizer.param_groups)
    if name == "prodigy":
        assert optimizer.param_groups[0]["d"] > 100 * optimizer.param_groups[0]["d0"]


@pytest.mark.parametrize("name", OTHERS)
def test_a_resumed_run_equals_an_uninterrupted_one_with_every_optimizer(config, tmp_path, name):
    config = with_values(config, {"optimizer": name, "with_prior_preservation": False, "checkpointing_steps": 2})
    weights = []
    for settings in ({}, {"resume_from_checkpoint": "checkpoint-2"}):
        run = prepare_run(DreamBooth(with_values(config, settings)))
        records = list(run.steps())
        assert all(math.isfinite(record.learning_rates["unet"]) for record in records)
        weights.append({name: weight.detach().clone() for name, weight in run.start().trainer.weights.items()})
    assert [record.step for record in records] == [3, 4]
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
def test_adamw_in_8_bits_stores_bytes_and_steps_like_adamw():
    ends, start = [], columns(adapted(128, 32)).detach()
    for name in ("adamw", "adamw_8bit"):
        model = adapted(128, 32)
        optimizer = build_optimizer({"unet": model}, {"unet": 0.05}, OptimizerConfig(optimizer=name))
        for seed in range(10):
            step(model, optimizer, seed)
        ends.append((columns(model).detach() - start).flatten())
    assert {optimizer.state[columns(model)][moment].dtype for moment in ("state1", "state2")} == {torch.uint8}
    assert torch.cosine_similarity(*ends, dim=0) > 0.98


def test_prodigys_estimated_rate_is_logged_in_radians(config):
    config = with_values(config, {"optimizer": "prodigy", "with_prior_preservation": False, "max_train_steps": 1})
    (record,) = prepare_run(DreamBooth(config)).steps()
    assert record.learning_rates["unet"] == pytest.approx(1e-4 * 4 * math.sqrt(8), rel=0.1)  # its initial estimate


def test_incompatible_settings_are_refused():
    for settings, complaint in (
        ({"optimizer": "schedule_free", "lr_scheduler": "cosine"}, "schedule_free has no schedule"),
        ({"optimizer": "prodigy", "text_encoder_lr": 0.1}, "one rate for all"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            with_values(DreamBoothConfig(), settings)


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)
    with pytest.raises(ConfigError, match=r"package prodigyopt .*pip install 'hra-diffusion\[optimizers\]'"):
        build_optimizer({"unet": adapted(8, 2)}, {"unet": 0.1}, OptimizerConfig(optimizer="prodigy"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match=r"package bitsandbytes .*pip install 'hra-diffusion\[8bit\]'"):
        build_optimizer({"unet": adapted(8, 2)}, {"unet": 0.1}, OptimizerConfig(optimizer="adamw_8bit"))
