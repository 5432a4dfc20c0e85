"""The optimizer and its learning rates."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How fast the reflections turn."""

    optimizer: Literal["adamw", "adamw_8bit", "schedule_free", "prodigy", "lion", "adafactor"] = "adamw"
    """What moves them. All but adamw and adafactor need an extra; prodigy finds the learning rate itself."""
    learning_rate: float = 0.02
    """How far one step turns a layer, in radians; it means the same at every rank and width."""
    text_encoder_lr: float | None = None
    """The same for the text encoder; learning_rate by default."""
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = "constant"
    """How the learning rate runs over the steps."""
    lr_warmup_steps: int = 0
    """Steps over which the learning rate grows from zero."""
    adam_beta1: float = 0.9
    """Decay of AdamW's mean gradient."""
    adam_beta2: float = 0.999
    """Decay of AdamW's mean squared gradient."""
    adam_epsilon: float = 1e-8
    """What AdamW adds to its divisor."""
    max_grad_norm: float = 1.0
    """Longer gradients are shortened to this norm."""
    use_ema: bool = False
    """Save and show the average of the reflections over the steps instead of the last ones."""
    ema_decay: float = 0.999
    """How much of the average stays at each step; less at the beginning."""
