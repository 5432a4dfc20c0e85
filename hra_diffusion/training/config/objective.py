"""The training objective of a run."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Training objective: timestep sampling and loss weighting."""

    loss_type: Literal["l2", "huber", "smooth_l1"] = "l2"
    """Loss of the prediction: l2, the mean squared error; huber, which counts large errors less and so outliers among
    the images; or smooth_l1, huber divided by its parameter."""
    huber_c: float = 0.1
    """Parameter c of huber and smooth_l1, above 0 and at most 1: errors well above it count linearly."""
    huber_schedule: Literal["snr", "exponential", "constant"] = "snr"
    """Parameter c over the timesteps: from 1 without noise down to huber_c with noise alone, by the signal-to-noise
    ratio or exponentially; or constant."""
    timestep_sampling: Literal["uniform", "logit_normal", "mode"] | None = None
    """Timestep sampling: distribution of the noise levels; by default logit_normal for flow-matching models and uniform
    for others."""
    logit_mean: float = 0.0
    """Mean of logit_normal; above 0, high noise is more frequent."""
    logit_std: float = 1.0
    """Standard deviation of logit_normal; larger values spread the noise levels."""
    mode_scale: float = 1.29
    """Scale of mode; 0 is uniform, above 0 medium noise is more frequent."""
    flow_shift: float | None = None
    """Timestep shift of flow-matching models; larger values mean more noise. The scheduler's shift by default."""
    snr_gamma: float | None = None
    """Min-SNR-γ loss weighting: steps of low noise count less; 5 is common. None by default."""
    debiased_estimation_loss: bool = False
    """Debiased estimation loss weighting, instead of snr_gamma."""
    noise_offset: float = 0.0
    """Noise offset: noise common to a whole channel, for very dark and very bright images; 0.05 is common."""
    input_perturbation: float = 0.0
    """Input perturbation: noise that is added to the noisy latents and is no part of the target; 0.1 is common."""
    orthogonality_weight: float = 0.0
    """Weight λ of the orthogonality penalty; the HRA paper has 0.001 for subjects."""
