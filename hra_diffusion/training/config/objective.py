"""The training objective: which noise levels are sampled and how each counts."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is learned at which noise, and how much it counts."""

    timestep_sampling: Literal["uniform", "logit_normal", "mode"] | None = None
    """How often each amount of noise is trained on; logit_normal for flow-matching models and uniform for others by
    default."""
    logit_mean: float = 0.0
    """Of logit_normal: above zero, more often at much noise."""
    logit_std: float = 1.0
    """Of logit_normal: larger ones spread it."""
    mode_scale: float = 1.29
    """Of mode: above zero, more often at the middle; 0 is uniform."""
    flow_shift: float | None = None
    """Shifts training of flow-matching models to more noise; the scheduler's own by default."""
    snr_gamma: float | None = None
    """Weights by min-SNR-γ, so that steps of little noise count less; 5 is customary."""
    debiased_estimation_loss: bool = False
    """Weights by debiased estimation instead."""
    noise_offset: float = 0.0
    """Noise common to a whole channel, for very dark and very bright images; 0.05 is customary."""
    input_perturbation: float = 0.0
    """Noise added to the noisy latents but not to be predicted; 0.1 is customary."""
    orthogonality_weight: float = 0.0
    """Weight λ of the orthogonality penalty; the paper takes 0.001 for subjects."""
