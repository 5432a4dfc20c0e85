"""The training objective: how far the prediction is from the process's target, for each example."""

from torch import Tensor, nn

from hra_diffusion.training.noising import NoiseProcess


class DenoisingLoss(nn.Module):
    """Mean squared error of the prediction, in float32 whatever the model's precision."""

    def __init__(self, denoiser: nn.Module, process: NoiseProcess) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.process = process

    def forward(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor, weights: Tensor | None = None, **condition: Tensor
    ) -> Tensor:
        """Losses of shape (B,) for latents and noise (B, C, h, w), timesteps (B,) and one condition an example.

        With weights of shape (B, 1, h, w), the mean is weighted: Σ w e² / Σ w, so that a small subject in a large
        picture counts as much as a large one.
        """
        noisy = self.process.add_noise(latents, noise, timesteps)
        target = self.process.target(latents, noise, timesteps)
        prediction = self.denoiser(noisy, timesteps, condition)
        errors = (prediction.float() - target.float()).square()
        if weights is None:
            return errors.flatten(1).mean(1)
        weights = weights.expand_as(errors)
        return (weights * errors).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1e-6)
