"""A denoiser and the encoder of its control images as one module, synchronized as one between devices."""

from torch import Tensor, nn

from hra_diffusion.control.encoder import ConditionEncoder
from hra_diffusion.control.guiding import adding
from hra_diffusion.pipelines.components import denoiser_name
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.families import Conditioning

CONDITION, CONDITION_KEPT = "control", "control_kept"
"""Names of the control images, uint8 (B, 3, H, W), and of their mask, (B,): 1 to use the image, 0 to drop it."""


class ControlledDenoiser(nn.Module):
    """A denoiser that also takes control images."""

    def __init__(self, denoiser: nn.Module, pipe: Pipeline, encoder: ConditionEncoder) -> None:
        super().__init__()
        self.denoiser, self.encoder = denoiser, encoder
        self._pipe = pipe

    def forward(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict for latents (B, C, h, w), timesteps (B,) and each example's prompt and control image."""
        others = {name: value for name, value in conditioning.items() if name not in (CONDITION, CONDITION_KEPT)}
        features = self.encoder(conditioning[CONDITION].to(self.encoder.dtype) / 255)
        kept = conditioning[CONDITION_KEPT].to(features.dtype).view(-1, 1, 1, 1)
        with adding(getattr(self._pipe, denoiser_name(self._pipe)), features * kept):
            return self.denoiser(noisy, timesteps, others)
