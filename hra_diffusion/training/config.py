"""What a training run can be told: small frozen dataclasses, one a subject, with diffusers' names for the fields.

A field is a flag (``--learning_rate``) and a key of the TOML file (``learning_rate``) at once, so names are unique over
all groups. ``None`` means "not said": :func:`hra_diffusion.training.defaults.resolve` fills it in from the model, the
picture folder or the embedded base. Nothing heavy is imported here, so that ``--help`` answers at once.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from hra_diffusion.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The base model, which is never changed."""

    pretrained_model_name_or_path: str | None = None
    """A folder in diffusers' layout, or a name on the Hugging Face hub; the embedded base by default."""
    revision: str | None = None
    """Branch, tag or commit of a model on the hub."""
    variant: str | None = None
    """Variant of the weight files, for example fp16."""
    pretrained_vae_model_name_or_path: str | None = None
    """Another autoencoder in place of the model's own, such as one for SDXL that works in half precision."""
    rescale_betas_zero_snr: bool = False
    """Let noise go all the way, so that pictures may be as dark or bright as a prompt wants; not for models that
    predict noise."""
    quantization: Literal["int8"] | None = None
    """Keeps the frozen denoiser in fewer bits while training; pictures of generate are drawn with the whole model."""

    @property
    def loading(self) -> dict[str, Any]:
        """What the model is loaded with wherever an adapter of it is used: options of ``pipelines.load_pipeline``."""
        return {
            "vae": self.pretrained_vae_model_name_or_path,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
        }


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The pictures of the subject, or of several."""

    instance_data_dir: Path | None = None
    """Folder with the pictures of the subject, or with such a folder for each of several subjects; a subject.toml
    beside the pictures may hold the prompts, a text file beside a picture or a metadata.jsonl its caption."""
    instance_prompt: str | None = None
    """What pictures without a caption show, with a rare word for the subject: "a photo of a sks dog"."""
    resolution: int | None = None
    """Side of the training pictures in pixels; the model's own by default."""
    center_crop: bool = False
    """Take the middle of pictures that are not square; otherwise both ends and the middle alternate."""
    random_flip: bool = False
    """Show pictures mirrored half of the time; not for subjects whose sides differ."""
    color_jitter: float = 0.0
    """How far brightness, contrast and saturation vary, for example 0.1; each crop is then seen in its own colours and
    in three others."""
    aspect_ratio_buckets: bool = False
    """Keep the shapes of pictures: sizes of about resolution × resolution pixels instead of squares."""
    background_color: str = "white"
    """What is seen through transparent pictures: a name, or "#rrggbb"."""
    mask_data_dir: Path | None = None
    """Folder with a mask for each picture, of the same name: white is learned, black counts little."""
    alpha_mask: bool = False
    """Take the transparency of pictures for such masks."""
    unmasked_weight: float = 0.1
    """How much black counts, from 0 to 1."""
    cache_dir: Path | None = None
    """Folder in which encoded pictures and prompts are kept for further runs; in memory alone by default."""


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Prior preservation: pictures of the class, seen along, keep the class from turning into the subject."""

    with_prior_preservation: bool = False
    """Train on pictures of the class too."""
    class_prompt: str | None = None
    """The class without the rare word: "a photo of a dog"."""
    class_data_dir: Path | None = None
    """Folder with pictures of the class; what is missing there is drawn by the base model. With several classes, a
    folder for each. class_images in the output folder by default."""
    num_class_images: int = 100
    """How many pictures of each class there are to be."""
    prior_loss_weight: float = 1.0
    """Weight of the class pictures' loss."""
    sample_batch_size: int = 4
    """How many class pictures are drawn at once."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Where the reflections go, and how many."""

    rank: int = 8
    """Reflections a layer; even, so that the adapter starts as the identity."""
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Layers of the denoiser that are adapted: ends of their names, or all-linear."""
    train_text_encoder: bool = False
    """Adapt the text encoder too; both CLIPs of SDXL and SD 3."""
    text_encoder_target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "out_proj")
    """Layers of the text encoders that are adapted."""


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


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run itself."""

    output_dir: Path | None = None
    """Folder for the adapter, config.toml, log.jsonl and before_after.png; outputs/<picture folder> by default."""
    max_train_steps: int | None = None
    """Optimiser steps; goes before num_train_epochs. 400 when neither is given."""
    num_train_epochs: int | None = None
    """Passes over the subject's pictures."""
    train_batch_size: int = 4
    """Pictures of the subject a step on each device; as many of the class join them with prior preservation."""
    gradient_accumulation_steps: int = 1
    """Batches an optimiser step."""
    gradient_checkpointing: bool = False
    """Save memory by computing activations twice."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the frozen model; the adapter itself always stays in float32."""
    seed: int = 0
    """Decides everything that is random in the run."""
    checkpointing_steps: int = 100
    """Steps between checkpoints; there is one at the end in any case."""
    checkpoints_total_limit: int | None = None
    """How many checkpoints are kept, the newest; all by default."""
    resume_from_checkpoint: str | None = None
    """latest, or the path of a checkpoint, to go on from there; latest starts anew where there is none."""
    dry_run: bool = False
    """Say what would be trained, how long it takes and what room it needs, write nothing, and stop."""
    report_to: Literal["tensorboard", "wandb", "trackio", "none"] | None = None
    """Where losses and validation pictures are sent, too; by default to TensorBoard, in logs, if it is installed."""


@dataclass(frozen=True, kw_only=True)
class PreviewConfig:
    """How pictures are drawn: those of the class, those on the way, and before_after.png."""

    validation_prompts: tuple[str, ...] = ("{instance_prompt}", "{instance_prompt} on a beach", "{class_prompt}")
    """Rows of before_after.png; {instance_prompt} and {class_prompt} stand for those prompts."""
    num_validation_images: int = 2
    """Seeds a row: seed, seed + 1, …"""
    num_inference_steps: int = 25
    """Denoising steps a picture."""
    guidance_scale: float = 7.5
    """Strength of classifier-free guidance."""
    validation_steps: int | None = None
    """Steps between looks at the adapter: its pictures of the same prompts and seeds go to validation/step-<step>."""


@dataclass(frozen=True, kw_only=True)
class DreamBoothConfig:
    """A DreamBooth run: a new subject from a few pictures. Checked as a whole when it is made."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    run: RunConfig = field(default_factory=RunConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)

    def __post_init__(self) -> None:
        """Check every range.

        Raises:
            ConfigError: a value is out of its range; the message names the flag, the value and the remedy.
        """
        for group in fields(self):
            for name, value in vars(getattr(self, group.name)).items():
                _check(name, value)
        if self.objective.snr_gamma is not None and self.objective.debiased_estimation_loss:
            raise ConfigError("--snr_gamma and --debiased_estimation_loss are two ways to weigh the loss: choose one.")
        if self.optimiser.optimizer == "schedule_free" and self.optimiser.lr_scheduler != "constant":
            raise ConfigError(
                f"--lr_scheduler is {self.optimiser.lr_scheduler}, and --optimizer schedule_free does without: leave "
                "it constant; --lr_warmup_steps counts."
            )
        if self.optimiser.optimizer == "prodigy" and self.optimiser.text_encoder_lr is not None:
            raise ConfigError("--text_encoder_lr does not go with --optimizer prodigy, which finds one rate for all.")


_BOUNDS: tuple[tuple[str, Callable[[float, float], bool], dict[str, float]], ...] = (
    (
        "at least",
        operator.ge,
        {
            "resolution": 8,
            "num_class_images": 1,
            "prior_loss_weight": 0,
            "sample_batch_size": 1,
            "rank": 1,
            "lr_warmup_steps": 0,
            "max_train_steps": 1,
            "num_train_epochs": 1,
            "train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "checkpointing_steps": 1,
            "checkpoints_total_limit": 1,
            "seed": 0,
            "num_validation_images": 1,
            "num_inference_steps": 1,
            "validation_steps": 1,
            "guidance_scale": 0,
            "adam_beta1": 0,
            "adam_beta2": 0,
            "color_jitter": 0,
            "unmasked_weight": 0,
            "ema_decay": 0,
            "mode_scale": 0,
            "noise_offset": 0,
            "input_perturbation": 0,
            "orthogonality_weight": 0,
        },
    ),
    (
        "greater than",
        operator.gt,
        {
            "learning_rate": 0,
            "text_encoder_lr": 0,
            "adam_epsilon": 0,
            "max_grad_norm": 0,
            "snr_gamma": 0,
            "logit_std": 0,
            "flow_shift": 0,
        },
    ),
    ("at most", operator.le, {"unmasked_weight": 1}),
    ("less than", operator.lt, {"color_jitter": 1, "adam_beta1": 1, "adam_beta2": 1, "ema_decay": 1, "seed": 2**63}),
)


def _check(name: str, value: object) -> None:
    """Raise ConfigError when ``value`` is not allowed for the field ``name``."""
    if isinstance(value, (int, float)):
        if not math.isfinite(value):
            raise ConfigError(f"--{name} is {value}: give a finite number.")
        for relation, holds, limits in _BOUNDS:
            if name in limits and not holds(value, limits[name]):
                raise ConfigError(f"--{name} is {value}: give a number {relation} {limits[name]}.")
    elif value == ():
        raise ConfigError(f"--{name} is empty: name at least one, or leave the flag out for its default.")
    elif isinstance(value, str) and not value.strip():
        raise ConfigError(f"--{name} is an empty text: give it a value, or leave the flag out.")
