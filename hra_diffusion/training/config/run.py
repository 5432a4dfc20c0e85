"""How a run goes, and what is seen of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The run itself."""

    output_dir: Path | None = None
    """Folder for the adapter, config.toml, log.jsonl and before_after.png; outputs/<image folder> by default."""
    max_train_steps: int | None = None
    """Optimizer steps; goes before num_train_epochs where both are given in one place. 400 when neither is."""
    num_train_epochs: int | None = None
    """Passes over the images."""
    train_batch_size: int = 4
    """Images of the subject a step on each device; as many of the class join them with prior preservation."""
    gradient_accumulation_steps: int = 1
    """Batches an optimizer step."""
    gradient_checkpointing: bool = False
    """Save memory by computing activations twice."""
    torch_compile: bool = False
    """Compile the denoiser's repeated blocks at the first step: a wait, for faster steps on a GPU."""
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
    """Where losses and validation images are sent, too; by default to TensorBoard, in logs, if it is installed."""


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """How images are drawn: those of the class, those on the way, and before_after.png."""

    num_validation_images: int = 2
    """Seeds a row: seed, seed + 1, …"""
    num_inference_steps: int = 25
    """Denoising steps an image."""
    guidance_scale: float = 7.5
    """Strength of classifier-free guidance."""
    validation_steps: int | None = None
    """Steps between looks at the adapter: its images of the same prompts and seeds go to validation/step-<step>."""

    def options(self, side: int | None) -> dict[str, Any]:
        """Return what a pipeline is told to draw squares of a side in pixels; of its own size where that is None."""
        return {
            "height": side,
            "width": side,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
        }


@dataclass(frozen=True, kw_only=True)
class SubjectValidationConfig(ValidationConfig):
    """The same, and of what."""

    validation_prompts: tuple[str, ...] = ("{instance_prompt}", "{instance_prompt} on a beach", "{class_prompt}")
    """Rows of before_after.png; {instance_prompt} and {class_prompt} stand for those prompts."""
