"""The run itself, and the images that it generates for validation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Run: output folder, steps, precision, checkpoints and trackers."""

    output_dir: Path | None = None
    """Output folder for the adapter, config.toml, log.jsonl and before_after.png; outputs/<image folder> by default."""
    max_train_steps: int | None = None
    """Number of optimizer steps; it overrides num_train_epochs where both are given in one place. 400 by default."""
    num_train_epochs: int | None = None
    """Number of epochs, passes over the images, instead of max_train_steps."""
    train_batch_size: int = 4
    """Batch size: images of the subject in a batch on each device. Prior preservation adds as many class images."""
    gradient_accumulation_steps: int = 1
    """Gradient accumulation: batches in an optimizer step."""
    gradient_checkpointing: bool = False
    """Gradient checkpointing: less memory, by computing activations twice."""
    blocks_to_swap: int = 0
    """Block swap: number of the denoiser's blocks whose frozen weights are in main memory, and are copied to the device
    when the block is called: less memory, slower steps. It needs gradient_checkpointing."""
    torch_compile: bool = False
    """torch.compile of the denoiser's repeated blocks: a slow first step, then faster steps on a GPU."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the frozen model; the adapter always stays in float32."""
    allow_tf32: bool = False
    """TF32 in the matrix products of float32 on GPUs from Ampere on: faster, with 10 bits of mantissa instead of 23."""
    seed: int = 0
    """Random seed of everything in the run."""
    checkpointing_steps: int = 100
    """Steps between checkpoints; the last step always has one."""
    checkpoints_total_limit: int | None = None
    """Number of checkpoints to keep, the newest; all by default."""
    resume_from_checkpoint: str | None = None
    """Resume: latest, or the path of a checkpoint; latest starts a new run if there is no checkpoint."""
    dry_run: bool = False
    """Dry run: print what would be trained, its time, memory and disk space; write nothing, and stop."""
    report_to: Literal["tensorboard", "wandb", "trackio", "none"] | None = None
    """Tracker of losses and validation images; by default TensorBoard, in logs, if it is installed."""
    logging_dir: Path | None = None
    """TensorBoard's folder; a relative path is below the output folder. By default logs."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """Generated images: validation, before_after.png and class images."""

    num_validation_images: int = 2
    """Number of images of each prompt, with the seeds seed, seed + 1, …"""
    num_inference_steps: int = 25
    """Number of denoising steps of an image, at most 1000."""
    guidance_scale: float | None = None
    """Guidance scale (CFG). By default that of the model's family; 7.5 for Stable Diffusion."""
    validation_steps: int | None = None
    """Validate every N steps: generate images of the same prompts and seeds into validation/step-<step>; never by
    default."""

    def options(self, side: int | None) -> dict[str, Any]:
        """Return the pipeline's options for square images.

        Args:
            side: their side in pixels; the pipeline's default size if None.
        """
        return {
            "height": side,
            "width": side,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
        }


@dataclass(frozen=True, kw_only=True)
class SubjectValidationConfig(ValidationConfig):
    """Generated images: validation, before_after.png and class images."""

    validation_prompts: tuple[str, ...] = ("{instance_prompt}", "{instance_prompt} on a beach", "{class_prompt}")
    """Validation prompts, the rows of before_after.png; {instance_prompt} and {class_prompt} stand for those
    prompts."""
    validate_every_n_steps: int | None = None
    """Validation loss every N steps: the loss on held-out images, always with the same noise and timesteps. Every 25
    steps with validation_split; never by default."""
