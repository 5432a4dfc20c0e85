"""How a run learns: where the reflections go, what counts, and how fast they turn."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Where the reflections go, and how many."""

    rank: int = 8
    """Reflections a layer; even, so that the adapter starts as the identity."""
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Layers of the denoiser that are adapted: ends of their names, or all-linear."""
    train_text_encoder: bool = False
    """Adapt the text encoder too; both CLIPs of SDXL and SD 3."""
    train_text_encoder_ti: bool = False
    """Learn new words, too: those in angle brackets in the instance prompt, "a photo of a <sks> dog". They are saved
    with the adapter."""
    num_new_tokens_per_abstraction: int = 2
    """Vectors that stand for each new word, one after the other."""
    initializer_concept: str | None = None
    """What new words mean at first, for example the class; by default, what they mean without their brackets."""
    text_encoder_target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    """Layers of the text encoders that are adapted."""

    @property
    def text_encoder_trains(self) -> bool:
        """Whether prompts are read anew in each step."""
        return self.train_text_encoder or self.train_text_encoder_ti


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is learned at which noise, and how much it counts."""

    timestep_sampling: Literal["uniform", "logit_normal", "mode"] | None = None
    """How often each amount of noise is trained on; logit_normal for flow-matching models and uniform for others by
    default."""
    logit_mean: float = 0.0
    """Of logit_normal: above zero, more often at much noise."""
    logit_std: float = 1.0
    """Of logit_normal: larger ones spread it."""
    mode_scale: float = 1.29
    """Of mode: above zero, more often at the middle; 0 is uniform."""
    flow_shift: float | None = None
    """Shifts training of flow-matching models to more noise; the scheduler's own by default."""
    snr_gamma: float | None = None
    """Weights by min-SNR-γ, so that steps of little noise count less; 5 is customary."""
    debiased_estimation_loss: bool = False
    """Weights by debiased estimation instead."""
    noise_offset: float = 0.0
    """Noise common to a whole channel, for very dark and very bright pictures; 0.05 is customary."""
    input_perturbation: float = 0.0
    """Noise added to the noisy latents but not to be predicted; 0.1 is customary."""
    orthogonality_weight: float = 0.0
    """Weight λ of the orthogonality penalty; the paper takes 0.001 for subjects."""


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
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
