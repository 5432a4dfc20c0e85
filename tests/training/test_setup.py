"""Learning rate cycles, TF32, and the environment variables of accelerate."""

import os

import pytest
import torch

from hra_diffusion.training.config import OptimizerConfig, RunConfig
from hra_diffusion.training.devices.accelerate_variables import describe_variables
from hra_diffusion.training.setup import _lr_scheduler, make_accelerator


@pytest.fixture
def environment(monkeypatch):
    """Return a function that sets variables, in an environment without accelerate's."""
    for name in os.environ:
        if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_")):
            monkeypatch.delenv(name)
    return monkeypatch.setenv


def rates(**settings) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = _lr_scheduler(optimizer, OptimizerConfig(**settings), 8)
    values = []
    for _ in range(8):
        values.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return values


def test_lr_num_cycles_repeats_the_cosine_with_restarts():
    two = rates(lr_scheduler="cosine_with_restarts", lr_num_cycles=2)
    assert two[:4] == pytest.approx(two[4:])
    assert two[:4] == sorted(two[:4], reverse=True)
    assert rates(lr_scheduler="cosine_with_restarts") == pytest.approx(rates(lr_scheduler="cosine"))


def test_allow_tf32_sets_torchs_switch(fresh_accelerate):
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        make_accelerator(RunConfig())
        assert matmul.allow_tf32 == before
        make_accelerator(RunConfig(allow_tf32=True))
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before


def test_variables_that_change_a_run_are_described_in_one_line(environment):
    assert describe_variables(RunConfig()) == ""
    for name, value in {"MIXED_PRECISION": "no", "DYNAMO_BACKEND": "NO", "DYNAMO_USE_FULLGRAPH": "False"}.items():
        environment(f"ACCELERATE_{name}", value)  # what `accelerate launch` always sets
    environment("FSDP_VERSION", "2")
    assert describe_variables(RunConfig()) == ""
    environment("ACCELERATE_USE_FSDP", "true")
    environment("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    environment("ACCELERATE_MIXED_PRECISION", "bf16")
    description = describe_variables(RunConfig())
    assert "ACCELERATE_DYNAMO_BACKEND=INDUCTOR, ACCELERATE_USE_FSDP=true, FSDP_VERSION=2" in description
    assert description.endswith(
        "change this run; ACCELERATE_MIXED_PRECISION=bf16 has no effect: --mixed_precision is no"
    )
    assert "\n" not in description
    assert "MIXED" not in describe_variables(RunConfig(mixed_precision="bf16"))


def test_the_flags_of_precision_and_accumulation_override_the_environment(environment, fresh_accelerate):
    environment("ACCELERATE_MIXED_PRECISION", "bf16")
    environment("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    accelerator = make_accelerator(RunConfig(gradient_accumulation_steps=2))
    assert (accelerator.mixed_precision, accelerator.gradient_accumulation_steps) == ("no", 2)
    assert "--gradient_accumulation_steps is 1" in describe_variables(RunConfig())
