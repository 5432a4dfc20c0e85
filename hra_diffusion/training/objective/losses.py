"""The training objective: how far each prediction is from the process's target, and how much it counts.

With the signal-to-noise ratio s of an example's timestep, an error of the prediction is c(s) times as large an error of
the clean latent, squared:

    epsilon: c² = 1/s     v_prediction: c² = 1/(s+1)     sample: c² = 1     flow: c² = 1/(1+√s)²

Errors of the clean latent count min(s, γ) with min-SNR-γ (Hang et al., arXiv 2303.09556), and √s with debiased
estimation (Yu et al., arXiv 2310.08442); c² turns that into weights of what is predicted.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from hra_diffusion.adapter import HRAModel
from hra_diffusion.training.config import ObjectiveConfig
from hra_diffusion.training.objective.noising import NoiseProcess

_CLEAN_PER_PREDICTED: dict[str, Callable[[Tensor], Tensor]] = {
    "epsilon": lambda snr: 1 / snr,
    "v_prediction": lambda snr: 1 / (snr + 1),
    "sample": torch.ones_like,
    "flow": lambda snr: (1 + snr.sqrt()) ** -2,
}
"""c² by what is predicted."""

MAX_SNR = 1e6
"""Where there is no noise, the ratio is taken to be this."""


class DenoisingLoss(nn.Module):
    """Mean squared error of the prediction, in float32 whatever the model's precision, and the orthogonality penalty.

    Args:
        denoiser: maps (noisy latents, timesteps, condition) to the prediction; holds everything that trains.
        process: how latents become noise.
        objective: how much examples count.
        adapted: the models whose reflections the orthogonality penalty is of.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        process: NoiseProcess,
        objective: ObjectiveConfig | None = None,
        adapted: Sequence[HRAModel] = (),
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.process = process
        self.objective = objective or ObjectiveConfig()
        self.adapted = tuple(adapted)  # not registered: they are in the denoiser

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        weights: Tensor | None = None,
        added_noise: Tensor | None = None,
        prior_prediction: Tensor | None = None,
        **condition: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Losses of shape (B,), and what is added to their mean.

        Args:
            latents: (B, C, h, w).
            noise: (B, C, h, w), what is to be predicted.
            timesteps: (B,).
            weights: (B, 1, h, w). The mean is then weighted: Σ w e² / Σ w, so that a small subject in a large image
                counts as much as a large one.
            added_noise: (B, C, h, w), what the latents are noised with where it is not ``noise``.
            prior_prediction: (B,), whether an example's target is what the model predicts without its adapters.
            condition: what the denoiser is told of each example.
        """
        noisy = self.process.add_noise(latents, noise if added_noise is None else added_noise, timesteps)
        target = self.process.target(latents, noise, timesteps)
        if prior_prediction is not None:
            rows = prior_prediction.nonzero().squeeze(1)
            told = {name: each[rows] for name, each in condition.items()}
            target = target.index_copy(0, rows, self._base_prediction(noisy[rows], timesteps[rows], told).to(target))
        prediction = self.denoiser(noisy, timesteps, condition)
        errors = (prediction.float() - target.float()).square()
        if weights is None:
            losses = errors.flatten(1).mean(1)
        else:
            weights = weights.expand_as(errors)
            losses = (weights * errors).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1e-6)
        return losses * snr_weights(self.process, timesteps, self.objective), self._penalty(losses)

    @torch.no_grad()
    def _base_prediction(self, noisy: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        with ExitStack() as without_adapters:
            for model in self.adapted:
                without_adapters.enter_context(model.disable_adapter())
            return self.denoiser(noisy, timesteps, condition)

    def _penalty(self, like: Tensor) -> Tensor:
        """Return λ Σ over layers of ‖I − ÛᵀÛ‖_F (arXiv 2405.17484, equation 6)."""
        if not self.objective.orthogonality_weight:
            return like.new_zeros(())
        return self.objective.orthogonality_weight * sum(
            (model.orthogonality_penalty().to(like.device) for model in self.adapted), like.new_zeros(())
        )


def snr_weights(process: NoiseProcess, timesteps: Tensor, objective: ObjectiveConfig) -> Tensor:
    """How much each example counts, of shape (B,)."""
    if objective.snr_gamma is None and not objective.debiased_estimation_loss:
        return torch.ones_like(timesteps, dtype=torch.float32)
    snr = process.snr(timesteps).float().clamp(min=1 / MAX_SNR, max=MAX_SNR)
    clean = snr.sqrt() if objective.snr_gamma is None else snr.clamp(max=objective.snr_gamma)
    return clean * _CLEAN_PER_PREDICTED[process.prediction](snr)
