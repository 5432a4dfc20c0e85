"""Losses of single errors e of the prediction, with a parameter c that may depend on the timestep.

    l2          e²
    huber       2c (√(e² + c²) − c)
    smooth_l1   2 (√(e² + c²) − c)

Huber losses are about e² (smooth_l1: e²/c) for errors well below c, and linear above it. c is 1 without noise and falls
to ``huber_c`` at noise alone, where errors tell of outliers and not of details ("scheduled Huber loss", Khrapov et al.,
arXiv 2403.16728). With σ² = 1/SNR and T timesteps:

    snr           c = huber_c + (1 − huber_c) / (1 + σ)²
    exponential   c = huber_c^(t/T)
    constant      c = huber_c

The names, formulas and defaults are those of kohya's scripts; a flow has the schedule snr, too, with σ² = 1/SNR.
"""

import torch
from torch import Tensor

from hra_diffusion.training.config import ObjectiveConfig
from hra_diffusion.training.objective.noising import NoiseProcess


def error_losses(errors: Tensor, timesteps: Tensor, process: NoiseProcess, objective: ObjectiveConfig) -> Tensor:
    """Return the loss of each error, of the errors' shape (B, …), at timesteps (B,)."""
    if objective.loss_type == "l2":
        return errors.square()
    c = huber_parameter(timesteps, process, objective).view(-1, *[1] * (errors.dim() - 1))
    # 2c (√(e² + c²) − c), without the cancellation of small errors
    huber = 2 * errors.square() / ((1 + (errors / c).square()).sqrt() + 1)
    return huber if objective.loss_type == "huber" else huber / c


def huber_parameter(timesteps: Tensor, process: NoiseProcess, objective: ObjectiveConfig) -> Tensor:
    """Return c for each timestep, of shape (B,), in (0, 1]."""
    least = objective.huber_c
    if objective.huber_schedule == "constant":
        return torch.full_like(timesteps, least, dtype=torch.float32)
    if objective.huber_schedule == "exponential":
        return least ** (timesteps.float() / process.steps)
    signal = process.snr(timesteps).float().sqrt()  # 1 / (1 + σ) = s / (1 + s) with s = 1/σ, infinite without noise
    return least + (1 - least) * (1 / (1 + 1 / signal)).square()
