"""The training objective: the weighted mean squared error of the prediction, or a Huber loss.

With the signal-to-noise ratio s of an example's timestep, an error e of the prediction is an error c(s) e of the clean
latent:

    epsilon: c² = 1/s     v_prediction: c² = 1/(s+1)     sample: c² = 1     flow: c² = 1/(1+√s)²

Squared errors of the clean latent have the weight min(s, γ) with min-SNR-γ (Hang et al., arXiv 2303.09556), and √s with
debiased estimation (Yu et al., arXiv 2310.08442). Times c², these are weights of the prediction's errors.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from hra_diffusion.model import HRAModel
from hra_diffusion.training.config import ObjectiveConfig
from hra_diffusion.training.objective.errors import error_losses
from hra_diffusion.training.objective.noising import NoiseProcess

_CLEAN_PER_PREDICTED: dict[str, Callable[[Tensor], Tensor]] = {
    "epsilon": lambda snr: 1 / snr,
    "v_prediction": lambda snr: 1 / (snr + 1),
    "sample": torch.ones_like,
    "flow": lambda snr: (1 + snr.sqrt()) ** -2,
}
"""c² by prediction type."""

MAX_SNR = 1e6
"""Upper bound of the signal-to-noise ratio, which is infinite without noise."""


class DenoisingLoss(nn.Module):
    """Mean loss of the prediction, in float32 whatever the model's precision, and the orthogonality penalty.

    Args:
        denoiser: maps (noisy latents, timesteps, conditioning) to the prediction; contains all trained weights.
        process: the noise process.
        objective: weights of the examples and of the penalty.
        adapted: the models under the orthogonality penalty.
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
        self.adapted = tuple(adapted)  # not registered: the denoiser contains them

    def forward(
        self,
        latents: Tensor,
        noise: Tensor,
        timesteps: Tensor,
        weights: Tensor | None = None,
        added_noise: Tensor | None = None,
        prior_rows: Tensor | None = None,
        **conditioning: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Return losses of shape (B,), and the penalty to add to their mean, or None without a penalty.

        Args:
            latents: (B, C, h, w).
            noise: (B, C, h, w), the noise to predict.
            timesteps: (B,).
            weights: (B, 1, h, w). The mean is then weighted: Σ w ℓ(e) / Σ w, so that a small subject in a large image
                counts as much as a large one.
            added_noise: (B, C, h, w), the noise to add to the latents if it differs from ``noise``.
            prior_rows: the indices of examples whose target is the base model's prediction, without adapters.
            conditioning: the denoiser's other inputs, (B, …) each. An input that has no row for each example is there
                once more for ``prior_rows`` alone, with ``prior_`` before its name.
        """
        noisy = self.process.add_noise(latents, noise if added_noise is None else added_noise, timesteps)
        target = self.process.target(latents, noise, timesteps)
        if prior_rows is not None:
            prior_conditioning = _prior_conditioning(conditioning, prior_rows)
            prior = self._base_prediction(noisy[prior_rows], timesteps[prior_rows], prior_conditioning)
            target = target.index_copy(0, prior_rows, prior.to(target))
        prediction = self.denoiser(noisy, timesteps, conditioning)
        errors = error_losses(prediction.float() - target.float(), timesteps, self.process, self.objective)
        if weights is None:
            losses = errors.flatten(1).mean(1)
        else:
            weights = weights.expand_as(errors)
            losses = (weights * errors).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1e-6)
        return losses * snr_weights(self.process, timesteps, self.objective), self._penalty(losses)

    @torch.no_grad()
    def _base_prediction(self, noisy: Tensor, timesteps: Tensor, conditioning: dict[str, Tensor]) -> Tensor:
        with ExitStack() as without_adapters:
            for model in self.adapted:
                without_adapters.enter_context(model.disable_adapter())
            return self.denoiser(noisy, timesteps, conditioning)

    def _penalty(self, like: Tensor) -> Tensor | None:
        """Return λ Σ over layers of ‖I − ÛᵀÛ‖_F (arXiv 2405.17484, equation 6)."""
        if not self.objective.orthogonality_weight:
            return None
        return self.objective.orthogonality_weight * sum(
            (model.orthogonality_penalty().to(like.device) for model in self.adapted), like.new_zeros(())
        )


def _prior_conditioning(conditioning: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Return the conditioning of the examples whose target is the base model's prediction."""
    return {
        name: conditioning[f"prior_{name}"] if f"prior_{name}" in conditioning else values[rows]
        for name, values in conditioning.items()
        if not name.startswith("prior_")
    }


def snr_weights(process: NoiseProcess, timesteps: Tensor, objective: ObjectiveConfig) -> Tensor:
    """Return the weight of each example's loss, of shape (B,)."""
    if objective.snr_gamma is None and not objective.debiased_estimation_loss:
        return torch.ones_like(timesteps, dtype=torch.float32)
    snr = process.snr(timesteps).float().clamp(min=1 / MAX_SNR, max=MAX_SNR)
    clean = snr.sqrt() if objective.snr_gamma is None else snr.clamp(max=objective.snr_gamma)
    return clean * _CLEAN_PER_PREDICTED[process.prediction](snr)
