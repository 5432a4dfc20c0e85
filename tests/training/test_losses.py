"""Weights, timesteps and noise of training examples, compared with independent formulas."""

import math

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.errors import ConfigError
from hra_diffusion.householder.start import random_columns
from hra_diffusion.training.config import DreamBoothConfig, ObjectiveConfig
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.objective.losses import DenoisingLoss, snr_weights
from hra_diffusion.training.objective.noising import noise_process
from hra_diffusion.training.objective.sampling import Sampling, sample_positions
from hra_diffusion.training.prepare import prepare_run


def process_of(kind, **options):
    if kind == "flow":
        return noise_process(FlowMatchEulerDiscreteScheduler())
    return noise_process(DDPMScheduler(prediction_type=kind, **options))


def clean_error(process, timestep, latents, noise, wrong):
    """Return the squared error of the clean latent for an error `wrong` of the prediction, solved numerically."""
    t = torch.tensor([timestep])
    target = process.target(latents, noise, t)
    if process.prediction == "sample":
        return wrong.square().mean()
    # Both are linear in the clean latent and its noise, given the noisy latent: x_t = a x₀ + b ε.
    zero = torch.zeros_like(latents)
    one = torch.ones_like(latents)
    a, b = process.add_noise(one, zero, t), process.add_noise(zero, one, t)
    noisy = process.add_noise(latents, noise, t)

    def clean(prediction):
        p, q = process.target(one, zero, t), process.target(zero, one, t)  # prediction = p x₀ + q ε
        return (b * prediction - q * noisy) / (b * p - q * a)

    return (clean(target + wrong) - clean(target)).square().mean()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow"])
@pytest.mark.parametrize("timestep", [20, 300, 700, 990])
def test_weights_are_those_of_the_error_of_the_clean_latent(kind, timestep):
    process = process_of(kind)
    latents, noise, wrong = torch.randn(3, 1, 2, 4, 4, dtype=torch.float64)
    snr = process.snr(torch.tensor([timestep])).item()
    error = clean_error(process, timestep, latents, noise, wrong).item() / wrong.square().mean().item()
    gamma, debiased = (
        snr_weights(process, torch.tensor([timestep]), objective).item()
        for objective in (ObjectiveConfig(snr_gamma=5.0), ObjectiveConfig(debiased_estimation_loss=True))
    )
    assert gamma == pytest.approx(min(snr, 5) * error, rel=1e-3)
    assert debiased == pytest.approx(math.sqrt(snr) * error, rel=1e-3)


def test_weights_equal_the_papers_for_epsilon_and_v_prediction():
    timesteps = torch.arange(0, 1000, 37)
    snr = process_of("epsilon").snr(timesteps)
    epsilon, v = (
        snr_weights(process_of(kind), timesteps, ObjectiveConfig(snr_gamma=5.0)) for kind in ("epsilon", "v_prediction")
    )
    assert torch.allclose(epsilon, torch.minimum(snr, torch.tensor(5.0)) / snr)
    assert torch.allclose(v, torch.minimum(snr, torch.tensor(5.0)) / (snr + 1))
    debiased = snr_weights(process_of("epsilon"), timesteps, ObjectiveConfig(debiased_estimation_loss=True))
    assert torch.allclose(debiased, 1 / snr.sqrt())
    assert snr_weights(process_of("epsilon"), timesteps, ObjectiveConfig()).tolist() == [1.0] * len(timesteps)


@pytest.mark.parametrize("objective", [ObjectiveConfig(snr_gamma=5.0), ObjectiveConfig(debiased_estimation_loss=True)])
def test_weights_are_finite_from_no_noise_to_noise_alone(objective):
    zero_snr = process_of("v_prediction", rescale_betas_zero_snr=True)
    assert snr_weights(zero_snr, torch.tensor([0, 999]), objective).isfinite().all()
    assert snr_weights(process_of("flow"), torch.tensor([0.0, 1000.0]), objective).isfinite().all()


def test_min_snr_and_debiased_estimation_exclude_one_another():
    with pytest.raises(ConfigError, match="choose one"):
        with_values(DreamBoothConfig(), {"snr_gamma": 5.0, "debiased_estimation_loss": True})


def sampler(**settings):
    return Sampling(process_of("epsilon"), ObjectiveConfig(**settings)), torch.Generator().manual_seed(0)


def test_offset_noise_is_constant_in_a_channel():
    sampling, rng = sampler(noise_offset=0.3)
    noise = torch.zeros(4000, 2, 3, 3)
    offset = sampling.noise_inputs(noise, rng)["noise"]
    assert torch.equal(offset, offset[..., :1, :1].expand_as(offset))
    assert offset[:, :, 0, 0].std().item() == pytest.approx(0.3, rel=0.05)
    assert offset[:, 0, 0, 0].dot(offset[:, 1, 0, 0]).item() / 4000 == pytest.approx(0, abs=0.01)


def test_input_perturbation_changes_the_input_and_not_the_target():
    sampling, rng = sampler(input_perturbation=0.1)
    noise = torch.randn(50, 4, 8, 8)
    noises = sampling.noise_inputs(noise, rng)
    assert torch.equal(noises["noise"], noise)
    assert (noises["added_noise"] - noise).std().item() == pytest.approx(0.1, rel=0.02)
    latents, timesteps = torch.randn(50, 4, 8, 8), torch.full((50,), 500)
    inputs = []
    loss = DenoisingLoss(lambda noisy, *_: inputs.append(noisy) or noise, sampling.process)
    losses, _ = loss(latents, timesteps=timesteps, **noises)
    assert losses.abs().max() == 0
    assert torch.equal(inputs[0], sampling.process.add_noise(latents, noises["added_noise"], timesteps))


def test_no_extra_random_numbers_are_sampled_by_default():
    sampling, rng = sampler()
    noise = torch.randn(2, 4, 3, 3)
    before = rng.get_state()
    assert sampling.noise_inputs(noise, rng) == {"noise": noise}
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize(
    ("density", "settings", "cumulative"),
    [
        ("uniform", {}, lambda p: p),
        (
            "logit_normal",
            {"logit_mean": 0.5, "logit_std": 0.8},
            lambda p: 0.5 + 0.5 * math.erf((math.log(p / (1 - p)) - 0.5) / (0.8 * math.sqrt(2))),
        ),
        ("mode", {"mode_scale": 0.0}, lambda p: p),
    ],
)
def test_positions_have_the_density_of_their_name(density, settings, cumulative):
    sampled = sample_positions(density, 40_000, ObjectiveConfig(**settings), torch.Generator().manual_seed(0))
    for p in (0.1, 0.3, 0.5, 0.8):
        assert (sampled < p).float().mean().item() == pytest.approx(cumulative(p), abs=0.01)


def test_mode_sampling_prefers_the_middle():
    sampled = sample_positions("mode", 40_000, ObjectiveConfig(), torch.Generator().manual_seed(0))
    middle = ((sampled > 0.25) & (sampled < 0.75)).float().mean().item()
    assert middle > 0.6
    assert sampled.min() >= 0
    assert sampled.max() <= 1


def test_flow_models_sample_middle_timesteps_more_often_by_default():
    flow = process_of("flow")
    shares = []
    for objective in (ObjectiveConfig(), ObjectiveConfig(timestep_sampling="uniform")):
        timesteps = Sampling(flow, objective).sample_timesteps(20_000, torch.Generator().manual_seed(0))
        shares.append(((timesteps > 250) & (timesteps < 750)).float().mean().item())
    assert shares[0] > 0.7
    assert shares[1] == pytest.approx(0.5, abs=0.02)


def test_the_penalty_equals_the_papers_and_is_zero_for_orthogonal_columns():
    model = HRAModel(torch.nn.Sequential(torch.nn.Linear(12, 5)), HRAConfig(r=4, target_modules=["0"]))
    columns = random_columns(12, 4, generator=torch.Generator().manual_seed(0))
    (hra_u,) = model.adapter_state_dict()[1].values()
    loss = DenoisingLoss(
        lambda noisy, *_: noisy, process_of("sample"), ObjectiveConfig(orthogonality_weight=0.01), [model]
    )
    inputs = {"latents": torch.zeros(1, 1, 2, 2), "noise": torch.zeros(1, 1, 2, 2), "timesteps": torch.tensor([3])}
    unit = hra_u / hra_u.norm(dim=0)
    _, penalty = loss(**inputs)
    assert penalty.item() == pytest.approx(0.01 * (torch.eye(4) - unit.T @ unit).norm().item(), rel=1e-5)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).copy_(torch.linalg.qr(columns)[0])
    assert loss(**inputs)[1].item() == pytest.approx(0, abs=1e-7)


def test_a_run_applies_its_objective_and_logs_the_penalty(config, tiny_sd_v):
    settings = {
        "pretrained_model_name_or_path": str(tiny_sd_v),
        "rescale_betas_zero_snr": True,
        "snr_gamma": 5.0,
        "noise_offset": 0.05,
        "input_perturbation": 0.1,
        "timestep_sampling": "logit_normal",
        "orthogonality_weight": 0.001,
        "max_train_steps": 2,
        "with_prior_preservation": False,
    }
    records = list(prepare_run(DreamBooth(with_values(config, settings))).steps())
    layers = 8 * (3 + 1) + 8  # attention of three blocks and the middle in the UNet, and of two layers in CLIP
    pairs = 2 * math.sqrt(2 * config.adapter.rank / 2) / 2  # ‖I − ÛᵀÛ‖_F: r/2 pairs, and little between them
    assert records[0].penalty == pytest.approx(0.001 * layers * pairs, rel=0.35)
    for record in records:
        assert record.loss == pytest.approx(record.losses["instance"] + record.penalty)
