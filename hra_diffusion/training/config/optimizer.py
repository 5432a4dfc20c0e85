"""The optimizer of a run and its learning rates."""

from dataclasses import dataclass
from typing import Literal

from hra_diffusion.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimizer, learning rates and EMA."""

    optimizer: Literal["adamw", "adamw_8bit", "schedule_free", "prodigy", "lion", "adafactor"] = "adamw"
    """Optimizer. All but adamw and adafactor need an extra; prodigy finds the learning rate itself."""
    learning_rate: float = 0.02
    """Learning rate: rotation of a layer in one step, in radians; it means the same at every rank and width."""
    text_encoder_lr: float | None = None
    """Learning rate of the text encoders, in radians; learning_rate by default."""
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = "constant"
    """Learning rate schedule over the steps."""
    lr_num_cycles: int = 1
    """Number of cosine_with_restarts' cycles: the learning rate falls to 0 in each."""
    lr_warmup_steps: int = 0
    """Warm-up: steps in which the learning rate grows from 0."""
    adam_beta1: float = 0.9
    """β₁: decay of AdamW's mean gradient, from 0 to less than 1."""
    adam_beta2: float = 0.999
    """β₂: decay of AdamW's mean squared gradient, from 0 to less than 1."""
    adam_epsilon: float = 1e-8
    """ε in AdamW's denominator."""
    max_grad_norm: float = 1.0
    """Gradient clipping: largest norm of the gradient."""
    use_ema: bool = False
    """EMA: validate and save with the exponential moving average of the adapter's weights over the steps."""
    ema_decay: float = 0.999
    """Decay of the EMA in each step, from 0 to less than 1; smaller in the first steps."""

    def check_magnitudes(self) -> None:
        """Check that the optimizer trains magnitudes.

        Raises:
            ConfigError: it has one learning rate for all weights.
        """
        if self.optimizer == "prodigy":
            raise ConfigError(
                "--optimizer prodigy has one learning rate for all weights, and magnitudes need their own: choose "
                "another optimizer, or leave --use_magnitude out."
            )
