"""The two ways in which models noise a latent x₀ with ε, and what they are taught to predict from the result.

Diffusion (Ho et al., arXiv 2006.11239), in steps t = 0 … T−1 of the scheduler's config:

    x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε
    epsilon: ε        sample: x₀        v_prediction: v = √ᾱ_t ε − √(1−ᾱ_t) x₀    (Salimans and Ho, arXiv 2202.00512)

Flow matching (Lipman et al., arXiv 2210.02747), at σ in (0, 1), which the model is told as t = T σ:

    x_σ = (1−σ) x₀ + σ ε,    target ε − x₀
"""

from collections.abc import Callable
from typing import Any, Protocol

from diffusers import DDPMScheduler
from torch import Tensor

from hra_diffusion.errors import ConfigError, ModelError


class NoiseProcess(Protocol):
    """How a model's latents become noise."""

    prediction: str
    """What the model predicts: epsilon, sample, v_prediction or flow."""

    def timesteps(self, position: Tensor) -> Tensor:
        """Timesteps at positions in [0, 1), of any shape, from no noise to nothing else."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noisy latents, shape as given: (B, C, h, w)."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return what the model should predict, shape as given: (B, C, h, w)."""
        ...

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio of each timestep, shape as given; 0 where there is noise alone."""
        ...


class Diffusion:
    """The variance-preserving process of a scheduler's betas."""

    def __init__(self, scheduler: DDPMScheduler) -> None:
        """Take the schedule; raises ModelError when its prediction type is unknown."""
        self.scheduler = scheduler
        self.prediction: str = scheduler.config.prediction_type
        targets: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
            "epsilon": lambda latents, noise, timesteps: noise,
            "sample": lambda latents, noise, timesteps: latents,
            "v_prediction": scheduler.get_velocity,
        }
        if self.prediction not in targets:
            raise ModelError(
                f"The model's scheduler predicts {self.prediction!r}: use a model with {', '.join(targets)}."
            )
        self.target = targets[self.prediction]
        self.add_noise = scheduler.add_noise

    def timesteps(self, position: Tensor) -> Tensor:
        """See :class:`NoiseProcess`: whole numbers."""
        steps = self.scheduler.config.num_train_timesteps
        return (position * steps).long().clamp(max=steps - 1)

    def snr(self, timesteps: Tensor) -> Tensor:
        """See :class:`NoiseProcess`: ᾱ / (1−ᾱ)."""
        signal = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        return signal / (1 - signal)


class Flow:
    """Straight lines from data to noise.

    Args:
        steps: T, the scale of timesteps.
        shift: how much of the way is spent near the noise; 1 for none of it. Larger images need more:
            σ → shift σ / (1 + (shift − 1) σ), equation 23 of Esser et al., arXiv 2403.03206.
    """

    prediction = "flow"

    def __init__(self, steps: int, shift: float) -> None:
        self.steps, self.shift = steps, shift

    def timesteps(self, position: Tensor) -> Tensor:
        """See :class:`NoiseProcess`: real numbers."""
        return self.steps * self.shift * position / (1 + (self.shift - 1) * position)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """See :class:`NoiseProcess`."""
        sigma = self._sigma(timesteps).view(-1, 1, 1, 1).to(latents.dtype)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """See :class:`NoiseProcess`."""
        return noise - latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """See :class:`NoiseProcess`: (1−σ)² / σ²."""
        return (1 / self._sigma(timesteps) - 1).square()

    def _sigma(self, timesteps: Tensor) -> Tensor:
        return timesteps / self.steps


def noise_process(scheduler: Any, flow_shift: float | None = None) -> NoiseProcess:
    """Return the process that a pipeline's scheduler undoes, after its config.

    Args:
        scheduler: one of diffusers'.
        flow_shift: the shift to train with, if not the scheduler's.

    Raises:
        ModelError: its prediction type is unknown.
        ConfigError: there is a shift, and the process has none.
    """
    config = scheduler.config
    if "FlowMatch" in type(scheduler).__name__ or config.get("prediction_type") == "flow_prediction":
        shift = flow_shift or config.get("shift") or config.get("flow_shift") or 1.0
        return Flow(config.num_train_timesteps, shift)
    if flow_shift is not None:
        raise ConfigError(
            f"--flow_shift is of flow-matching models, and this one predicts {config.prediction_type}: leave it out."
        )
    return Diffusion(DDPMScheduler.from_config(config))
