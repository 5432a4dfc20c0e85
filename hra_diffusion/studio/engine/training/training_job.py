"""A training job: images, a trigger word, a class and a preset, written as the folder and the settings of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.files import write_file
from hra_diffusion.formats.reading import check_regular
from hra_diffusion.studio.engine.adapters.entry import check_name
from hra_diffusion.studio.engine.adapters.subject_prompts import subject_prompt
from hra_diffusion.studio.engine.setting_error import SettingError
from hra_diffusion.studio.engine.training.run_options import check_run_options
from hra_diffusion.studio.engine.training.training_images import TrainingImage, read_cropped
from hra_diffusion.studio.engine.uploads import DECODING, MAX_FILES
from hra_diffusion.training.config import ControlNetConfig, DreamBoothConfig, TrainingConfig
from hra_diffusion.training.config.defaults import embedded_defaults
from hra_diffusion.training.config.file import read_toml, to_toml, with_values

SETTINGS_FILE, SETTINGS_FILE_0_1 = "job.toml", "lesson.toml"
"""The settings of a run in its folder, and their name in version 0.1."""
IMAGES = "images"
VALIDATION_PROMPTS = ("{instance_prompt}", "{instance_prompt} on a beach", "{class_prompt}")
_MAX_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A training preset: steps, rank, class images and validation."""

    steps: int
    rank: int = 8
    class_images: int = 24
    """Number of class images for regularization; 0 turns it off."""
    validations: int = 4
    """Number of validations during the training."""
    inference_steps: int = 25
    """Denoising steps of a validation image."""

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers out of range."""
        ranges = {
            "steps": (1, 20_000),
            "rank": (2, 64),
            "class_images": (0, 1000),
            "validations": (0, 50),
            "inference_steps": (1, 100),
        }
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise SettingError(name, f"is {getattr(self, name)}: give a number from {least} to {most}.")
        if self.rank % 2:
            raise SettingError("rank", f"is {self.rank}: give an even number, so that the strength stays adjustable.")


PRESETS = {
    "Quick look": Preset(steps=60, rank=4, class_images=8, validations=2),
    "Usual": Preset(steps=200),
    "Thorough": Preset(steps=400, class_images=48),
}


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """The images and settings of a training job."""

    name: str
    images: tuple[TrainingImage, ...]
    token: str = "sks"
    """The trigger word."""
    subject: str
    """The class: dog, teapot, …"""
    prompt_prefix: str = "a photo of"
    """The kind of image: "a photo of", "a 3d render of", …"""
    base: str | None = None
    """Name of the base model; None is the studio's first."""
    preset: Preset = PRESETS["Usual"]
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the run under their names on the command line, see `run_options.RUN_OPTIONS`."""

    @classmethod
    def defaults(cls, *, embedded: bool, text_encoders_train: bool) -> TrainingConfig:
        """Return the initial settings of a job: for the embedded base, or for other bases.

        Args:
            embedded: whether the base is the embedded one.
            text_encoders_train: whether the base's text encoders can be trained.
        """
        config = embedded_defaults(DreamBoothConfig, "embedded.toml") if embedded else DreamBoothConfig()
        return with_values(config, {"train_text_encoder": text_encoders_train})

    def __post_init__(self) -> None:
        """Raise ConfigError for invalid words, or too many images."""
        check_setting_name("name", self.name)
        self.check_words()
        if len(self.prompt_prefix) > _MAX_CHARACTERS:
            raise SettingError("prompt_prefix", f"is longer than {_MAX_CHARACTERS} characters: shorten it.")
        if not 1 <= len(self.images) <= MAX_FILES:
            raise SettingError("images", f"are {len(self.images)}: give 1 to {MAX_FILES} images, best four to eight.")
        check_run_options(self.options)

    def check_words(self) -> None:
        """Raise ConfigError for an invalid trigger word or class."""
        for setting, words in (("token", self.token), ("subject", self.subject)):
            if not words.strip() or len(words) > _MAX_CHARACTERS or "\n" in words:
                problem = "is empty" if not words.strip() else "is too long or has several lines"
                raise SettingError(
                    setting, f"{problem}: give one or a few words, at most {_MAX_CHARACTERS} characters."
                )

    @property
    def prompt(self) -> str:
        """The instance prompt."""
        return subject_prompt(self.prompt_prefix, self.token, self.subject)

    @property
    def class_prompt(self) -> str:
        """The class prompt."""
        return subject_prompt(self.prompt_prefix, self.subject)

    def caption(self, image: TrainingImage) -> str:
        """Return the caption of an image; "" for the instance prompt."""
        return image.caption.strip()

    def config(self, base: str, default: TrainingConfig, folder: Path) -> TrainingConfig:
        """Return the settings of the run.

        Args:
            base: the model.
            default: the base's default settings.
            folder: the run's output folder.
        """
        preset = self.preset
        return with_values(
            default,
            {
                "pretrained_model_name_or_path": base,
                "instance_data_dir": folder / IMAGES,
                "instance_prompt": self.prompt,
                "class_prompt": self.class_prompt,
                "with_prior_preservation": preset.class_images > 0,
                "num_class_images": max(1, preset.class_images),
                "rank": preset.rank,
                "max_train_steps": preset.steps,
                "checkpointing_steps": max(1, preset.steps // 4),
                "checkpoints_total_limit": None,
                "validation_steps": max(1, preset.steps // preset.validations) if preset.validations else None,
                "validation_prompts": VALIDATION_PROMPTS,
                "num_validation_images": 1,
                "num_inference_steps": preset.inference_steps,
                "output_dir": folder,
                "report_to": "none",
                **self.options,
            },
        )

    def write(self, folder: Path, config: TrainingConfig) -> None:
        """Write images, captions and settings into the run's folder.

        Raises:
            ConfigError: a setting is not valid UTF-8; nothing is written.
            ImageError: an image cannot be read or cropped; earlier ones are written.
            OutputError: the folder cannot be written.
        """
        settings = to_toml(config)
        for number, image in enumerate(self.images):
            with DECODING:
                write_file(folder / IMAGES / f"{number:03d}.png", read_cropped(image).save)
            if caption := self.caption(image):
                text = caption.encode("utf-8", "replace").decode()
                write_file(folder / IMAGES / f"{number:03d}.txt", lambda path, t=text: path.write_text(t, "utf-8"))
        write_file(folder / SETTINGS_FILE, lambda path: path.write_text(settings, encoding="utf-8"))


def check_setting_name(setting: str, name: str) -> str:
    """Return a name without surrounding spaces; raise SettingError for one that no folder may have."""
    if not isinstance(name, str) or not name.strip():
        raise SettingError(setting, "is empty: give a name.")
    try:
        return check_name(name)
    except ConfigError as error:
        raise SettingError(setting, f"is invalid: {error}") from error


def settings_file(folder: Path) -> Path:
    """Return the settings file of a run's folder, also of version 0.1."""
    old = folder / SETTINGS_FILE_0_1
    return old if old.is_file() else folder / SETTINGS_FILE


def is_control(folder: Path) -> bool:
    """Whether a job trains a control."""
    try:
        return "[control]" in settings_file(folder).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # the reader of the settings reports it
        return False


def read_settings(folder: Path) -> DreamBoothConfig | ControlNetConfig:
    """Read the settings of a job from its folder.

    Raises:
        AdapterFileError: there is no settings file, or it is a pipe or a device.
        ConfigError: the settings are damaged.
    """
    file = settings_file(folder)
    check_regular(file)
    return read_toml(file, ControlNetConfig() if is_control(folder) else DreamBoothConfig())


def adjust_preset(preset: Preset, **changes: int | None) -> Preset:
    """Return a preset with all changes other than None."""
    return replace(preset, **{name: value for name, value in changes.items() if value is not None})
