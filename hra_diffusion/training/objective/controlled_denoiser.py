"""The denoiser and the encoder of its condition as one module, so that devices synchronize them as one."""

from typing import Any

from torch import Tensor, nn

from hra_diffusion.control.encoder import ConditionEncoder
from hra_diffusion.control.guiding import adding
from hra_diffusion.training.families import Condition

CONDITIONS, KEPT = "control", "control_kept"
"""Names of the conditions, uint8 of shape (B, 3, H, W), and of whether each is there, 1 or 0 of shape (B,)."""


class ControlledDenoiser(nn.Module):
    """Maps noisy latents, timesteps and conditions, images among them, to the prediction."""

    def __init__(self, denoiser: nn.Module, pipe: Any, encoder: ConditionEncoder) -> None:
        super().__init__()
        self.denoiser, self.encoder = denoiser, encoder
        self._pipe = pipe

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """Predict for latents (B, C, h, w), timesteps (B,) and what is known of each example."""
        told = {name: value for name, value in condition.items() if name not in (CONDITIONS, KEPT)}
        features = self.encoder(condition[CONDITIONS].to(self.encoder.dtype) / 255)
        with adding(self._pipe.unet, features * condition[KEPT].to(features.dtype).view(-1, 1, 1, 1)):
            return self.denoiser(noisy, timesteps, told)
