"""The noise processes of models, with noise ε added to a latent x₀, and the targets of their predictions.

Diffusion (Ho et al., arXiv 2006.11239), in steps t = 0 … T−1 of the scheduler's config:

    x_t = √ᾱ_t x₀ + √(1−ᾱ_t) ε
    epsilon: ε        sample: x₀        v_prediction: v = √ᾱ_t ε − √(1−ᾱ_t) x₀    (Salimans and Ho, arXiv 2202.00512)

Flow matching (Lipman et al., arXiv 2210.02747), at σ in (0, 1); the timestep for the model is t = T σ:

    x_σ = (1−σ) x₀ + σ ε,    target ε − x₀
"""

from collections.abc import Callable, Sequence
from math import exp
from typing import Any, Protocol

from diffusers import DDPMScheduler
from torch import Tensor

from hra_diffusion.errors import ConfigError, ModelError

_DIFFUSION_PREDICTIONS = ("epsilon", "sample", "v_prediction")
_BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace")


class NoiseProcess(Protocol):
    """A process that turns latents into noise, with its targets."""

    prediction: str
    """The prediction type: epsilon, sample, v_prediction or flow."""
    steps: int
    """T, the scale of timesteps: those near T are noise alone."""

    def timesteps(self, position: Tensor, size: Sequence[int] = ()) -> Tensor:
        """Return the timesteps at positions in [0, 1), of any shape; 0 is without noise, 1 is noise alone.

        Args:
            position: the positions.
            size: the shape of the latents, (C, h, w), on which a dynamic shift depends.
        """
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noisy latents, (B, C, h, w)."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the target of the prediction, (B, C, h, w)."""
        ...

    def snr(self, timesteps: Tensor) -> Tensor:
        """Return the signal-to-noise ratio of each timestep, (B,); 0 for noise alone."""
        ...


class Diffusion:
    """The variance-preserving process of a scheduler's betas."""

    def __init__(self, scheduler: Any) -> None:
        """Use the noise schedule of a DDPMScheduler.

        Raises:
            ModelError: its prediction type is unknown.
        """
        self.scheduler = scheduler
        self.steps: int = scheduler.config.num_train_timesteps
        self.prediction: str = scheduler.config.prediction_type
        if self.prediction not in _DIFFUSION_PREDICTIONS:
            raise ModelError(
                f"The model's scheduler predicts {self.prediction!r}: use a model that predicts "
                f"{', '.join(_DIFFUSION_PREDICTIONS)}."
            )

    def timesteps(self, position: Tensor, size: Sequence[int] = ()) -> Tensor:
        """See :class:`NoiseProcess`: integers."""
        return (position * self.steps).long().clamp(max=self.steps - 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """See :class:`NoiseProcess`."""
        return self.scheduler.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """See :class:`NoiseProcess`."""
        if self.prediction == "v_prediction":
            return self.scheduler.get_velocity(latents, noise, timesteps)
        return noise if self.prediction == "epsilon" else latents

    def snr(self, timesteps: Tensor) -> Tensor:
        """See :class:`NoiseProcess`: ᾱ / (1−ᾱ)."""
        signal = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        return signal / (1 - signal)


class Flow:
    """The process along straight lines from data to noise.

    Args:
        steps: T, the scale of timesteps.
        shift: more than 1 for more timesteps near the noise, as large images need:
            σ → shift σ / (1 + (shift − 1) σ), equation 23 of Esser et al., arXiv 2403.03206. A dynamic shift is a
            function of the shape (C, h, w) of the latents.
    """

    prediction = "flow"

    def __init__(self, steps: int, shift: float | Callable[[Sequence[int]], float]) -> None:
        self.steps, self.shift = steps, shift

    def timesteps(self, position: Tensor, size: Sequence[int] = ()) -> Tensor:
        """See :class:`NoiseProcess`: real numbers."""
        shift = self.shift(size) if callable(self.shift) else self.shift
        return self.steps * shift * position / (1 + (shift - 1) * position)

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


def noise_process(
    scheduler: Any, flow_shift: float | None = None, mu: Callable[[Sequence[int]], float] | None = None
) -> NoiseProcess:
    """Return the noise process of a pipeline's scheduler.

    Args:
        scheduler: a scheduler of diffusers, of which the config is used.
        flow_shift: the shift to train with; the scheduler's own if None.
        mu: the logarithm of the pipeline's shift for latents of shape (C, h, w), for a scheduler with dynamic shifting;
            with linear shifting, the shift itself.

    Raises:
        ModelError: the scheduler's prediction type or noise process is unknown.
        ConfigError: a shift is given, and the model is no flow-matching model.
    """
    config = scheduler.config
    if "FlowMatch" in type(scheduler).__name__ or config.get("prediction_type") == "flow_prediction":
        if mu is not None and flow_shift is None and config.get("use_dynamic_shifting"):
            is_linear = config.get("time_shift_type") == "linear"
            return Flow(config.num_train_timesteps, mu if is_linear else lambda size: exp(mu(size)))
        shift = flow_shift or config.get("shift") or config.get("flow_shift") or 1.0
        return Flow(config.num_train_timesteps, shift)
    _check_betas(scheduler)
    if flow_shift is not None:
        raise ConfigError(
            f"--flow_shift is for flow-matching models, and this model predicts {config.prediction_type}: leave it out."
        )
    return Diffusion(DDPMScheduler.from_config(config))


def _check_betas(scheduler: Any) -> None:
    """Refuse a scheduler without the betas of a diffusion process: DDPM's defaults would be another process.

    Raises:
        ModelError: the scheduler has none, such as those of EDM (Karras et al., arXiv 2206.00364).
    """
    config = scheduler.config
    schedule = config.get("beta_schedule")
    if schedule in _BETA_SCHEDULES or (schedule is not None and config.get("trained_betas") is not None):
        return
    betas = f"the beta_schedule {str(schedule)[:40]!r}" if schedule else "no betas"
    raise ModelError(
        f"The model's scheduler is {type(scheduler).__name__}, which has {betas}: its noise process cannot be trained "
        "here. Use a model of diffusion with betas (DDPM, DDIM, Euler and others) or of flow matching."
    )
