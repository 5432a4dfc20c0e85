"""EMA: an average on the sphere, without effect on training, to save and generate with."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hra_diffusion.householder.chain import chain_matrix
from hra_diffusion.pipelines import generate_image, load_hra_weights, load_pipeline
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.loop.ema import EMA
from hra_diffusion.training.loop.optimizers import retract
from hra_diffusion.training.prepare import prepare_run
from hra_diffusion.training.run import Run
from tests.accelerate_state import reset_accelerate

COLUMNS, OTHER = "layer.hra_u_default", "tokens"
WEIGHTS = Path("unet") / "adapter_model.safetensors"


def columns(seed: int, d: int = 16, r: int = 4) -> torch.Tensor:
    u = torch.randn(d, r, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    retract([[u]])
    return u


def test_the_average_is_the_weighted_mean_retracted_to_the_sphere():
    u, v = columns(0), columns(1)
    average = EMA({COLUMNS: u, OTHER: u}, decay=0.1)
    average.update({COLUMNS: v, OTHER: v}, step=1)
    mean = 0.1 * u + 0.9 * v
    assert torch.allclose(average.weights[OTHER], mean)
    assert torch.allclose(average.weights[COLUMNS], mean * math.sqrt(16) / mean.norm(dim=0))


def test_the_decay_warms_up():
    average = EMA({OTHER: torch.zeros(1)}, decay=0.9)
    average.update({OTHER: torch.ones(1)}, step=1)
    assert average.weights[OTHER].item() == pytest.approx(1 - 2 / 11)
    average.update({OTHER: torch.zeros(1)}, step=1000)
    assert average.weights[OTHER].item() == pytest.approx(0.9 * (1 - 2 / 11))


def test_the_average_of_near_columns_is_the_rotation_halfway():
    u = columns(0, r=1)
    direction = columns(1, r=1)
    direction -= u * (u * direction).sum() / u.square().sum()
    direction *= 4 / direction.norm()
    ends = [u * math.cos(angle) + direction * math.sin(angle) for angle in (-0.1, 0.1)]
    average = EMA({COLUMNS: ends[0]}, decay=0.5)
    average.update({COLUMNS: ends[1]}, step=1000)
    assert torch.allclose(chain_matrix(average.weights[COLUMNS]), chain_matrix(u), atol=1e-12)


def test_zero_columns_stay_zero():
    average = EMA({COLUMNS: torch.zeros(8, 2)}, decay=0.5)
    average.update({COLUMNS: torch.zeros(8, 2)}, step=5)
    assert not average.weights[COLUMNS].any()


def train(config, folder: Path, stop_after: int | None = None, **changes) -> Run:
    reset_accelerate()
    run = prepare_run(DreamBooth(with_values(config, {"output_dir": folder, **changes})))
    for record in run.steps():
        if record.step == stop_after:
            run.save_checkpoint()
            return run
    run.save()
    return run


@pytest.fixture
def config(config):
    values = {"with_prior_preservation": False, "train_text_encoder": False, "learning_rate": 1.0}
    return with_values(config, {**values, "use_ema": True, "ema_decay": 0.5, "checkpointing_steps": 2})


def test_ema_does_not_affect_training_and_is_saved(config, tmp_path):
    without = train(config, tmp_path / "without", use_ema=False)
    average = train(config, tmp_path / "average")
    assert (average.folder / "log.jsonl").read_bytes() == (without.folder / "log.jsonl").read_bytes()
    saved = [load_file(run.folder / "adapter" / WEIGHTS) for run in (without, average)]
    assert not any(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])
    expected = torch.cat([weight.flatten() for weight in average.start().trainer.ema.weights.values()])
    actual = torch.cat([saved[1][f"base_model.model.{name}"].flatten() for name in saved_names(average)])
    assert torch.equal(actual, expected)


def saved_names(run: Run) -> list[str]:
    """Return the names of the UNet's trained weights in an adapter file."""
    return [name.partition("unet.model.")[2].replace("hra_u_default", "hra_u") for name in run.start().trainer.weights]


def test_a_resumed_run_with_ema_equals_an_uninterrupted_one_bit_for_bit(config, tmp_path):
    whole = train(config, tmp_path / "whole").folder
    train(config, tmp_path / "stopped", stop_after=3)
    stopped = train(config, tmp_path / "stopped", resume_from_checkpoint="latest").folder
    for name in (Path("adapter") / WEIGHTS, "checkpoint-4/training_state.safetensors", "log.jsonl"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_validation_images_are_generated_with_the_ema_of_the_checkpoint(config, tmp_path):
    run = train(config, tmp_path / "run", stop_after=2)
    before = {name: weight.detach().clone() for name, weight in run.start().trainer.weights.items()}
    prompt, seed, image = next(iter(list(run.generate_validation())))
    assert all(torch.equal(weight, before[name]) for name, weight in run.start().trainer.weights.items())
    pipe = load_pipeline(str(config.model.pretrained_model_name_or_path))
    load_hra_weights(pipe, tmp_path / "run" / "checkpoint-2")
    theirs = generate_image(pipe, prompt, seed, num_inference_steps=2)
    assert np.array_equal(np.asarray(image), np.asarray(theirs))
