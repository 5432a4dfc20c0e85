"""A ControlNet-style run: pairs of images and conditions, their annotator, and validation."""

from dataclasses import dataclass, field
from pathlib import Path

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config.adapter import ATTENTION_TARGETS
from hra_diffusion.training.config.data import ImageConfig
from hra_diffusion.training.config.root import TrainingConfig
from hra_diffusion.training.config.run import ValidationConfig


@dataclass(frozen=True, kw_only=True)
class PairsConfig(ImageConfig):
    """Training pairs: images, their captions and, if they exist, their conditions."""

    train_data_dir: Path | None = None
    """Image folder with captions, as text files of the same names or in a metadata.jsonl. Conditions are images of the
    same names in the sub-folder conditioning_images, or named in the metadata.jsonl; without conditions, the annotator
    makes them."""
    resolution: int | None = None
    """Resolution: side of the training images in pixels, a multiple of the model's size step; the model's default size
    by default."""
    dataset_name: str | None = None
    """Dataset of the library datasets instead of a folder: a folder of save_to_disk, tar files of WebDataset, or a name
    on the hub."""
    dataset_config_name: str | None = None
    """Name of the dataset's config."""
    image_column: str = "image"
    """Column of the images in the dataset or metadata.jsonl, which may also name them in file_name."""
    conditioning_image_column: str = "conditioning_image"
    """Column of the conditions."""
    caption_column: str = "text"
    """Column of the captions."""
    max_train_samples: int | None = None
    """Number of pairs to train on, the first; all by default."""
    validation_data_dir: Path | None = None
    """Validation folder: pairs for before_after.png, in the layout of train_data_dir. By default its sub-folder
    held_out, or else the first pairs; unused with validation_image."""


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """Control: annotator, condition encoder and conditioning dropout."""

    annotator: str | None = None
    """Annotator (preprocessor), which makes conditions: canny, scribble, soft_edge, color, segmentation, depth, normal,
    face or pose; given for conditions of another kind. By default given if the pairs have conditions, else canny. For
    pairs with conditions, it says what made them, and what makes those of generated images."""
    annotator_model: str | None = None
    """Model of the annotator: of transformers for segmentation, depth and normal, of mediapipe for face and pose."""
    annotator_settings: tuple[str, ...] | None = None
    """Other settings of the annotator, such as low=50 high=100."""
    encoder_lr: float = 0.002
    """Learning rate of the condition encoder: an ordinary one, not in radians. prodigy finds it itself."""
    proportion_empty_prompts: float = 0.05
    """Dropout of captions: share of examples without their caption, from 0 to 1."""
    proportion_empty_conditions: float = 0.05
    """Dropout of conditions: share of examples without their condition, from 0 to 1."""
    proportion_empty_both: float = 0.05
    """Dropout of both: share of examples without caption and condition, from 0 to 1. The three shares are of different
    examples and add up to at most 1."""

    def __post_init__(self) -> None:
        """Raise ConfigError if the shares add up to more than 1."""
        shares = (self.proportion_empty_prompts, self.proportion_empty_conditions, self.proportion_empty_both)
        if sum(shares) > 1:
            raise ConfigError(
                "--proportion_empty_prompts, --proportion_empty_conditions and --proportion_empty_both "
                f"add up to {sum(shares):g}: give shares with a sum of at most 1."
            )

    @property
    def settings(self) -> dict[str, str | int | float]:
        """The annotator's settings by name.

        Raises:
            ConfigError: a setting is not written as name=value.
        """
        settings: dict[str, str | int | float] = dict(_pair(text) for text in self.annotator_settings or ())
        return settings | ({"model": self.annotator_model} if self.annotator_model else {})


def _pair(text: str) -> tuple[str, int | float]:
    name, equals, value = text.partition("=")
    try:
        return name.strip(), int(value) if value.strip().isdigit() else float(value)
    except ValueError:
        kind = "a number" if equals else "name=value"
        raise ConfigError(f"--annotator_settings has {text!r}: write {kind}, such as low=50.") from None


@dataclass(frozen=True, kw_only=True)
class ControlValidationConfig(ValidationConfig):
    """Generated images: validation and before_after.png, from pairs or from given conditions."""

    num_validation_images: int = 2
    """Number of pairs, the first, with the seeds seed, seed + 1, …; with validation_image, number of images of each
    condition."""
    validation_image: tuple[Path, ...] | None = None
    """Validation conditions instead of those of pairs, as the annotator makes them; one, or one for each prompt."""
    validation_prompt: tuple[str, ...] | None = None
    """Validation prompts for validation_image: one, or one for each condition."""

    def __post_init__(self) -> None:
        """Raise ConfigError if the numbers of prompts and conditions do not match."""
        prompts, conditions = len(self.validation_prompt or ()), len(self.validation_image or ())
        if (prompts == 0) != (conditions == 0) or (prompts != conditions and 1 not in (prompts, conditions)):
            raise ConfigError(
                f"--validation_image names {conditions} conditions and --validation_prompt {prompts} prompts: give as "
                "many of both, or one of either."
            )

    @property
    def given(self) -> list[tuple[str, Path]]:
        """The given validation prompts with their conditions."""
        prompts, conditions = self.validation_prompt or (), self.validation_image or ()
        number = max(len(prompts), len(conditions))
        return [(prompts[index % len(prompts)], conditions[index % len(conditions)]) for index in range(number)]


CONTROL_TARGETS: tuple[str, ...] = (*ATTENTION_TARGETS, "ff.net.0.proj")
"""Default target modules of a UNet: attention and the gated projection (arXiv 2405.17484, appendix on controllable
generation). A transformer has those of its family."""


@dataclass(frozen=True, kw_only=True)
class ControlNetConfig(TrainingConfig):
    """A ControlNet-style run: training of a new kind of condition from many pairs."""

    pairs: PairsConfig = field(default_factory=PairsConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    validation: ControlValidationConfig = field(default_factory=ControlValidationConfig)
