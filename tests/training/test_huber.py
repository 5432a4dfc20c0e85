"""Huber losses: kohya's formulas, between the squared error of small errors and the absolute error of large ones."""

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from hra_diffusion.training.config import ObjectiveConfig
from hra_diffusion.training.objective.errors import error_losses, huber_parameter
from hra_diffusion.training.objective.losses import DenoisingLoss
from hra_diffusion.training.objective.noising import noise_process

DIFFUSION, FLOW = noise_process(DDPMScheduler()), noise_process(FlowMatchEulerDiscreteScheduler())


@pytest.mark.parametrize("schedule", ["snr", "exponential", "constant"])
@pytest.mark.parametrize("c", [0.01, 0.1, 1.0])
def test_the_formulas_are_those_of_kohyas_scripts(schedule, c):
    timesteps = torch.tensor([0, 250, 700, 999])
    errors = torch.randn(4, 2, 3, 3, dtype=torch.float64)
    alphas = DDPMScheduler().alphas_cumprod[timesteps]
    sigmas = ((1 - alphas) / alphas).sqrt()
    parameter = {
        "snr": (1 - c) / (1 + sigmas) ** 2 + c,
        "exponential": torch.exp(torch.log(torch.tensor(c)) / 1000 * timesteps),
        "constant": torch.full((4,), c),
    }[schedule]
    settings = {"huber_c": c, "huber_schedule": schedule}
    assert torch.allclose(huber_parameter(timesteps, DIFFUSION, ObjectiveConfig(**settings)), parameter)
    at_pixels = parameter.double().view(-1, 1, 1, 1)
    root = (errors.square() + at_pixels.square()).sqrt() - at_pixels
    for kind, expected in (("huber", 2 * at_pixels * root), ("smooth_l1", 2 * root), ("l2", errors.square())):
        losses = error_losses(errors, timesteps, DIFFUSION, ObjectiveConfig(loss_type=kind, **settings))
        assert torch.allclose(losses, expected, rtol=1e-4), kind


def test_the_parameter_falls_from_one_without_noise_to_huber_c_with_noise_alone():
    zero_snr = noise_process(DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction"))
    for process, clean, noise in ((FLOW, 0.0, 1000.0), (zero_snr, 0, 999)):
        parameter = huber_parameter(torch.tensor([clean, noise]), process, ObjectiveConfig(huber_c=0.2))
        assert parameter.tolist() == pytest.approx([1.0, 0.2], abs=0.02)


def test_small_errors_are_not_lost_to_rounding():
    objective = ObjectiveConfig(loss_type="huber", huber_schedule="constant", huber_c=1.0)
    (loss,) = error_losses(torch.tensor([1e-6]), torch.tensor([5]), DIFFUSION, objective)
    assert loss.item() == pytest.approx(1e-12, rel=1e-3)


def test_an_outlier_counts_less_in_a_huber_loss():
    noise = torch.zeros(1, 1, 4, 4)
    outlier = noise.clone()
    outlier[..., 0, 0] = 10.0

    def loss(kind):
        module = DenoisingLoss(lambda *_: outlier, DIFFUSION, ObjectiveConfig(loss_type=kind))
        return module(torch.zeros_like(noise), noise, torch.tensor([500]))[0].item()

    assert 0 < loss("huber") < loss("smooth_l1") < loss("l2") == pytest.approx(100 / 16)
