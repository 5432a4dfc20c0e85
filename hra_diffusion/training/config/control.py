"""What a control learns from: pairs of images, and how conditions are made and left out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config.adapter import AdapterConfig
from hra_diffusion.training.config.data import ImageConfig
from hra_diffusion.training.config.root import TrainingConfig
from hra_diffusion.training.config.run import ValidationConfig


@dataclass(frozen=True, kw_only=True)
class PairsConfig(ImageConfig):
    """Images, their captions and, where they are there already, their conditions."""

    train_data_dir: Path | None = None
    """Folder with images and their captions, as text files of the same names or in a metadata.jsonl. Conditions are
    images of the same names in its sub-folder conditioning_images, or named in the metadata.jsonl; where there are
    none, the annotator makes them."""
    dataset_name: str | None = None
    """Instead of a folder: what the library datasets knows, a folder of its save_to_disk, tar files of WebDataset, or a
    name on the hub."""
    dataset_config_name: str | None = None
    """Which of the dataset's configs."""
    image_column: str = "image"
    """What images are called in a dataset; in a metadata.jsonl they may be file_name, too."""
    conditioning_image_column: str = "conditioning_image"
    """What conditions are called."""
    caption_column: str = "text"
    """What captions are called."""
    max_train_samples: int | None = None
    """Take the first so many pairs only."""
    validation_data_dir: Path | None = None
    """Folder like train_data_dir with pairs for before_after.png; its sub-folder held_out by default, else the first
    pairs. With validation_image, none."""


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """The condition."""

    annotator: str = "canny"
    """What makes conditions: canny, scribble, soft_edge, color, segmentation, depth, normal, face, pose; or given,
    where they are of another kind."""
    annotator_model: str | None = None
    """The model it looks with: of transformers for segmentation, depth and normal, of mediapipe for face and pose."""
    annotator_settings: tuple[str, ...] | None = None
    """Its other settings, such as low=50 high=100."""
    encoder_lr: float = 0.002
    """Learning rate of the condition encoder, which is no reflection; prodigy finds this one, too."""
    proportion_empty_prompts: float = 0.05
    """Share of examples that are learned from without their caption, …"""
    proportion_empty_conditions: float = 0.05
    """… without their condition, …"""
    proportion_empty_both: float = 0.05
    """… and without either."""

    def __post_init__(self) -> None:
        """Raise ConfigError when nothing is left of the examples."""
        shares = (self.proportion_empty_prompts, self.proportion_empty_conditions, self.proportion_empty_both)
        if sum(shares) > 1:
            raise ConfigError(
                "--proportion_empty_prompts, --proportion_empty_conditions and --proportion_empty_both are of "
                f"different examples, and add up to {sum(shares):g}: give shares of at most 1 together."
            )

    @property
    def settings(self) -> dict[str, str | int | float]:
        """The annotator's settings by name.

        Raises:
            ConfigError: one of them is not written as name=value.
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
    """How images are drawn, on the way and for before_after.png: of pairs, or of conditions that are given here."""

    num_validation_images: int = 2
    """How many pairs, the first, one with each seed: seed, seed + 1, …; with validation_image, how many images of
    each condition."""
    validation_image: tuple[Path, ...] | None = None
    """Conditions to follow instead of those of pairs, as the annotator makes them; one, or one for each prompt."""
    validation_prompt: tuple[str, ...] | None = None
    """Prompts of validation_image: one, or one for each condition."""

    def __post_init__(self) -> None:
        """Raise ConfigError when prompts and conditions do not go together."""
        prompts, conditions = len(self.validation_prompt or ()), len(self.validation_image or ())
        if (prompts == 0) != (conditions == 0) or (prompts != conditions and 1 not in (prompts, conditions)):
            raise ConfigError(
                f"--validation_image names {conditions} conditions and --validation_prompt {prompts} prompts: give as "
                "many of both, or one of either."
            )

    @property
    def given(self) -> list[tuple[str, Path]]:
        """Return the prompts with their conditions, those that were given."""
        prompts, conditions = self.validation_prompt or (), self.validation_image or ()
        number = max(len(prompts), len(conditions))
        return [(prompts[at % len(prompts)], conditions[at % len(conditions)]) for at in range(number)]


CONTROL_TARGETS: Sequence[str] = (*AdapterConfig().target_modules, "ff.net.0.proj")
"""Attention and the gated projection (arXiv 2405.17484, appendix on controllable generation)."""


@dataclass(frozen=True, kw_only=True)
class ControlNetConfig(TrainingConfig):
    """A ControlNet-style run: a new kind of condition from many pairs."""

    pairs: PairsConfig = field(default_factory=PairsConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    validation: ControlValidationConfig = field(default_factory=ControlValidationConfig)
    adapter: AdapterConfig = field(default_factory=lambda: AdapterConfig(target_modules=tuple(CONTROL_TARGETS)))
