"""A training task: what a run learns from, and what it trains besides adapters.

:class:`~hra_diffusion.training.dreambooth.DreamBooth` learns a subject,
:class:`~hra_diffusion.training.controlnet.ControlNet` a condition. A constructor only keeps the settings;
:func:`~hra_diffusion.training.prepare.prepare_run` and the run then call the methods in the order of this file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import nn

from hra_diffusion.training.config import TrainingConfig
from hra_diffusion.training.config.data import ImageConfig
from hra_diffusion.training.data.batches import Source
from hra_diffusion.training.data.sources import SourceEncoder
from hra_diffusion.training.families import Family
from hra_diffusion.training.outputs.validation import Validation


@dataclass(frozen=True, kw_only=True)
class ExtraModule:
    """A module that trains beside the adapters and is saved with them."""

    module: Any
    learning_rate: float


class Task(Protocol):
    """A kind of training."""

    @property
    def config(self) -> TrainingConfig:
        """The settings; `read_inputs` and `plan` complete them."""
        ...

    def read_inputs(self, accelerator: Accelerator) -> None:
        """Check the settings and read images and captions, before any model is loaded."""
        ...

    def plan(self, family: Family, num_processes: int) -> None:
        """Choose image sizes and the number of steps for a model."""
        ...

    def add_modules(self, family: Family) -> None:
        """Add everything trainable besides adapters: token embeddings, a condition encoder."""
        ...

    @property
    def extra_modules(self) -> Mapping[str, ExtraModule]:
        """Modules outside the pipeline that train, by the name of their folder."""
        ...

    def digests(self) -> dict[str, str]:
        """Digest each training image with its caption, by name."""
        ...

    def validation(self) -> Validation:
        """Return the images to generate during and after training."""
        ...

    @property
    def summary(self) -> str:
        """The inputs in one line, without the model."""
        ...

    def inputs(self) -> Iterator[tuple[str, str]]:
        """Describe the training images, in lines of a label and a text."""
        ...

    @property
    def images_per_example(self) -> int:
        """Images for each example of a batch: 2 with prior preservation."""
        ...

    @property
    def num_class_images(self) -> int:
        """Class images of the run, generated ones included."""
        ...

    def generate_class_images(self) -> Iterator[int]:
        """Generate missing class images; yields the number of images so far."""
        ...

    @property
    def image_settings(self) -> ImageConfig:
        """Settings of crops, colors and the cache."""
        ...

    def sources(self, source_encoder: SourceEncoder) -> list[Source]:
        """Encode the training images."""
        ...

    def denoiser(self, family: Family) -> nn.Module:
        """Return the module that maps latents, timesteps and conditions to a prediction."""
        ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run without its model: complete settings, fingerprint, and the checkpoint to resume from."""

    config: TrainingConfig
    """With output_dir and max_train_steps."""
    fingerprint: Mapping[str, Any]
    """Settings, images and model, which a checkpoint must share: see :mod:`hra_diffusion.training.outputs.resuming`."""
    checkpoint: Path | None = None
    """The checkpoint to resume from."""
    initial_global_step: int = 0
    """Steps that the checkpoint has done."""

    @property
    def folder(self) -> Path:
        """The output folder: adapter/, config.toml, log.jsonl, before_after.png."""
        assert self.config.run.output_dir
        return self.config.run.output_dir

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        assert self.config.run.max_train_steps
        return self.config.run.max_train_steps
