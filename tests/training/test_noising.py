"""Noise processes equal those of the model's scheduler, and the clean latent follows from the target."""

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    IPNDMScheduler,
)

from hra_diffusion.errors import ConfigError, ModelError
from hra_diffusion.training.objective.noising import noise_process


@pytest.mark.parametrize(
    ("kind", "clean"),
    [
        ("epsilon", lambda x, target, a, s: (x - s * target) / a),
        ("v_prediction", lambda x, target, a, s: a * x - s * target),
        ("sample", lambda x, target, a, s: target),
    ],
)
def test_the_clean_latent_follows_from_the_target_of_diffusion(kind, clean):
    scheduler = EulerDiscreteScheduler(prediction_type=kind)
    process = noise_process(scheduler)
    latents, noise = torch.randn(2, 3, 4, 8, 8).double()
    timesteps = torch.tensor([0, 400, 998])
    signal = scheduler.alphas_cumprod[timesteps].double().view(-1, 1, 1, 1)
    noisy, target = process.add_noise(latents, noise, timesteps), process.target(latents, noise, timesteps)
    assert torch.allclose(noisy, signal.sqrt() * latents + (1 - signal).sqrt() * noise, atol=1e-6)
    assert torch.allclose(clean(noisy, target, signal.sqrt(), (1 - signal).sqrt()), latents, atol=1e-4)
    assert torch.allclose(process.snr(timesteps), (signal / (1 - signal)).flatten().float())
    assert process.prediction == kind


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_noises_along_straight_lines_as_its_scheduler_does(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    process = noise_process(scheduler)
    timesteps = process.timesteps(torch.tensor([0.1, 0.5, 0.9]))
    sigma = shift * torch.tensor([0.1, 0.5, 0.9]) / (1 + (shift - 1) * torch.tensor([0.1, 0.5, 0.9]))
    assert torch.allclose(timesteps, 1000 * sigma)
    latents, noise = torch.randn(2, 3, 4, 8, 8)
    noisy, target = process.add_noise(latents, noise, timesteps), process.target(latents, noise, timesteps)
    assert torch.allclose(noisy - sigma.view(-1, 1, 1, 1) * target, latents, atol=1e-5)
    theirs = scheduler.timesteps[[0, 499, 899]]  # the scheduler's table, with the shift
    assert torch.allclose(process.timesteps(torch.tensor([1.0, 0.501, 0.101])), theirs, atol=1e-2)
    assert torch.allclose(process.add_noise(latents, noise, theirs), scheduler.scale_noise(latents, theirs, noise))
    assert torch.allclose(process.snr(timesteps), ((1 - sigma) / sigma).square())


def test_flow_is_recognized_by_the_prediction_type_of_other_schedulers():
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0)
    process = noise_process(scheduler)
    assert process.prediction == "flow"
    assert process.timesteps(torch.tensor(0.5)).item() == pytest.approx(1000 * 2 / 3)


def test_zero_terminal_snr_reaches_pure_noise():
    process = noise_process(DDPMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True))
    latents, noise = torch.randn(2, 1, 4, 8, 8)
    last = torch.tensor([999])
    assert torch.allclose(process.add_noise(latents, noise, last), noise, atol=1e-5)
    assert torch.allclose(process.target(latents, noise, last), -latents, atol=1e-5)
    assert process.snr(last).item() == pytest.approx(0, abs=1e-9)


def test_timesteps_range_from_the_first_to_the_last():
    process = noise_process(DDPMScheduler())
    assert process.timesteps(torch.tensor([0.0, 0.5, 0.9999999, 1.0])).tolist() == [0, 500, 999, 999]


def test_an_unknown_prediction_type_is_refused():
    with pytest.raises(ModelError, match=r"predicts 'velocity'.*epsilon, sample, v_prediction"):
        noise_process(DDPMScheduler(prediction_type="velocity"))


def test_a_shift_is_refused_without_flow_matching():
    with pytest.raises(ConfigError, match="--flow_shift is for flow-matching models, and this model predicts epsilon"):
        noise_process(DDPMScheduler(), 3.0)


@pytest.mark.parametrize("scheduler", [EDMEulerScheduler(), EDMDPMSolverMultistepScheduler(), IPNDMScheduler()])
def test_a_scheduler_without_betas_is_refused(scheduler):
    with pytest.raises(ModelError, match=f"is {type(scheduler).__name__}, which has no betas"):
        noise_process(scheduler)
