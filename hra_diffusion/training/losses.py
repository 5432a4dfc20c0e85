"""The training objective: how far the prediction is from the family's target, for each example."""

from torch import Tensor, nn

from hra_diffusion.training.families import Family


class DenoisingLoss(nn.Module):
    """Mean squared error of the prediction, in float32 whatever the model's precision."""

    def __init__(self, denoiser: nn.Module, family: Family) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.family = family

    def forward(self, latents: Tensor, noise: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Losses of shape (B,) for latents and noise (B, C, h, w), timesteps (B,) and one condition an example."""
        noisy = self.family.add_noise(latents, noise, timesteps)
        target = self.family.target(latents, noise, timesteps)
        prediction = self.denoiser(noisy, timesteps, condition)
        return (prediction.float() - target.float()).square().flatten(1).mean(1)
