"""Settings of evaluations, with the flags' names. Reading them needs no torch."""

from dataclasses import dataclass
from pathlib import Path

from hra_diffusion.training.config.base import BaseConfig, PlacementConfig


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(BaseConfig, PlacementConfig):
    """Settings for the evaluation of an adapter; the training run has the defaults for missing ones."""

    adapter: Path
    """The adapter's folder, or the output folder of its training run."""
    checkpoints: bool = False
    """Measure each checkpoint of the run in the folder, and pick one by gap closed."""
    pretrained_model_name_or_path: str | None = None
    """Base model: folder or hub name. By default the adapter's base model."""
    instance_prompt: str | None = None
    """Prompt of the subject, with its trigger word. By default the training run's."""
    class_prompt: str | None = None
    """Prompt of the class. By default the training run's."""
    reference_dir: Path | None = None
    """Folder of real images of the subject. By default held_out in the image folder, or else the image folder: in it,
    the images that validation_split has held out, if any."""
    clip: str | None = None
    """CLIP model: folder or hub name. By default the embedded judge for emoji-sd, else CLIP ViT-L/14."""
    dino: str | None = None
    """DINO model: folder or hub name. By default none for emoji-sd, else DINO ViT-S/16 if it can be loaded."""
    num_contexts: int = 8
    """Number of prompts of the subject, each in another context. Its class and unrelated prompts get half as many."""
    num_images: int = 4
    """Images for each prompt, with the seeds seed, seed + 1, …"""
    seed: int = 0
    """Random seed of the first image."""
    num_inference_steps: int | None = None
    """Denoising steps. By default those of the training run's validation."""
    guidance_scale: float | None = None
    """Guidance (CFG) scale. By default that of the training run's validation."""
    resolution: int | None = None
    """Side of the images in pixels. By default the training resolution."""
    batch_size: int = 4
    """Images generated at once. With 1 they equal those of the command generate bit for bit."""
    output_dir: Path | None = None
    """Folder for metrics.json, metrics.md and metrics.png. By default the adapter's folder, or its run's."""


@dataclass(frozen=True, kw_only=True)
class EvaluateControlConfig(BaseConfig, PlacementConfig):
    """Settings for the evaluation of a control."""

    run: Path
    """The output folder of a run of train-control."""
    pretrained_model_name_or_path: str | None = None
    """Base model: folder or hub name. By default the control's base model."""
    pairs_dir: Path | None = None
    """Folder of held-out pairs, with objects' masks in a sub-folder masks. By default held_out in train_data_dir."""
    num_pairs: int = 50
    """Number of pairs, from the first."""
    batch_size: int = 8
    """Images generated at once."""
    output_dir: Path | None = None
    """Folder for metrics.json and metrics.md. By default the run's."""
