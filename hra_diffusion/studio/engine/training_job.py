"""A lesson: images, a rare word and a class, and how much effort; written as the folder and the settings of a run."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from hra_diffusion.errors import ConfigError, HRAError, ImageError
from hra_diffusion.formats.files import write_file
from hra_diffusion.studio.engine.library import check_name
from hra_diffusion.studio.engine.uploads import MAX_FILES, read_upload
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import to_toml, with_values

SETTINGS = "lesson.toml"
IMAGES = "images"
CROPS = ("whole", "middle", "start", "end")
_NUMBERS = re.compile(r"\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*")
_WORDS = 200


@dataclass(frozen=True, kw_only=True)
class Preset:
    """How long a subject is studied."""

    steps: int
    rank: int = 8
    class_images: int = 24
    """Images of the class that protect it; 0 leaves it unprotected."""
    looks: int = 4
    """How often samples are drawn on the way."""
    preview_steps: int = 25
    """Denoising steps of a sample."""

    def __post_init__(self) -> None:
        """Raise ConfigError for what is out of its range."""
        ranges = {
            "steps": (1, 20_000),
            "rank": (2, 64),
            "class_images": (0, 1000),
            "looks": (0, 50),
            "preview_steps": (1, 100),
        }
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                wanted = name.replace("_", " ")
                raise ConfigError(f"{wanted} is {getattr(self, name)}: give a number from {least} to {most}.")
        if self.rank % 2:
            raise ConfigError(f"The rank is {self.rank}: give an even number, so that strength can be chosen later.")


PRESETS = {
    "Quick look": Preset(steps=60, rank=4, class_images=8, looks=2),
    "Usual": Preset(steps=200),
    "Thorough": Preset(steps=400, class_images=48),
}


@dataclass(frozen=True, kw_only=True)
class TrainingImage:
    """One image of a lesson."""

    file: Path
    caption: str = ""
    """What it shows; the prompt where it is empty."""
    crop: str = "whole"
    """whole; middle, start or end for a square there; or "x, y, width, height" in pixels."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """What is to be taught."""

    name: str
    sittings: tuple[TrainingImage, ...]
    token: str = "sks"
    subject: str
    """The class: dog, teapot, …"""
    prompt_prefix: str = "a photo of"
    """What the images are: "a photo of", "a 3d render of", …"""
    effort: Preset = PRESETS["Usual"]

    def __post_init__(self) -> None:
        """Raise ConfigError for words that cannot be used."""
        check_name(self.name)
        for what, word in (("rare word", self.token), ("class", self.subject)):
            if not word.strip() or len(word) > _WORDS or "\n" in word:
                raise ConfigError(f"Give a {what}: one or a few words, at most {_WORDS} characters.")
        if len(self.prompt_prefix) > _WORDS:
            raise ConfigError(f"What the images are is longer than {_WORDS} characters: shorten it.")
        if not 1 <= len(self.sittings) <= MAX_FILES:
            raise ConfigError(f"Give 1 to {MAX_FILES} images, best four to eight; found {len(self.sittings)}.")

    @property
    def prompt(self) -> str:
        """What the subject is called."""
        return called(self.prompt_prefix, self.token, self.subject)

    @property
    def class_prompt(self) -> str:
        """What any of its class is called."""
        return called(self.prompt_prefix, self.subject)

    def settings(self, base: str, default: DreamBoothConfig, folder: Path) -> DreamBoothConfig:
        """Return the settings of the run.

        Args:
            base: the model.
            default: settings that fit it.
            folder: where the run goes.
        """
        effort = self.effort
        return with_values(
            default,
            {
                "pretrained_model_name_or_path": base,
                "instance_data_dir": folder / IMAGES,
                "instance_prompt": self.prompt,
                "class_prompt": self.class_prompt,
                "with_prior_preservation": effort.class_images > 0,
                "num_class_images": max(1, effort.class_images),
                "rank": effort.rank,
                "train_text_encoder": True,
                "max_train_steps": effort.steps,
                "checkpointing_steps": max(1, effort.steps // 4),
                "checkpoints_total_limit": 1,
                "validation_steps": max(1, effort.steps // effort.looks) if effort.looks else None,
                "validation_prompts": ("{instance_prompt}", "{instance_prompt} on a beach", "{class_prompt}"),
                "num_validation_images": 1,
                "num_inference_steps": effort.preview_steps,
                "output_dir": folder,
                "report_to": "none",
            },
        )

    def write(self, folder: Path, config: DreamBoothConfig) -> None:
        """Write images, captions and settings into the run's folder.

        Raises:
            ImageError: an image cannot be used; nothing is written.
            OutputError: the folder cannot be written.
        """
        images = [(cropped(sitting), sitting.caption.strip()) for sitting in self.sittings]
        for number, (image, caption) in enumerate(images):
            write_file(folder / IMAGES / f"{number:03d}.png", image.save)
            if caption:
                text = caption.encode("utf-8", "replace").decode()
                write_file(folder / IMAGES / f"{number:03d}.txt", lambda path, t=text: path.write_text(t, "utf-8"))
        write_file(folder / SETTINGS, lambda path: path.write_text(to_toml(config), encoding="utf-8"))


def called(prompt_prefix: str, *words: str) -> str:
    """Return the prompt that names something: "a photo of", "sks", "dog" make "a photo of a sks dog"."""
    return " ".join([prompt_prefix.strip(), "a", *(word.strip() for word in words)]).strip()


def cropped(sitting: TrainingImage) -> Image.Image:
    """Read and crop an image.

    Raises:
        ImageError: it cannot be read, or the crop lies outside of it.
    """
    image, crop = read_upload(sitting.file), sitting.crop.strip().lower() or "whole"
    width, height = image.size
    side = min(width, height)
    corners = {
        "start": (0, 0),
        "middle": ((width - side) // 2, (height - side) // 2),
        "end": (width - side, height - side),
    }
    if crop == "whole":
        return image
    if crop in corners:
        x, y, w, h = (*corners[crop], side, side)
    elif numbers := _NUMBERS.fullmatch(crop):
        x, y, w, h = map(int, numbers.groups())
    else:
        raise ImageError(
            f"{sitting.file.name}: the crop {crop[:40]!r} is none of {', '.join(CROPS)}, nor x, y, width, height."
        )
    if not (w and h and x + w <= width and y + h <= height):
        raise ImageError(f"{sitting.file.name}: the crop {crop} lies outside of its {width}×{height} pixels.")
    return image.crop((x, y, x + w, y + h))


def examine(files: Sequence[Path]) -> list[tuple[Path, tuple[int, int] | None, str]]:
    """Look at images at once: each with its size and what is wrong with it, if anything.

    Raises:
        ConfigError: there are too many.
    """
    if len(files) > MAX_FILES:
        raise ConfigError(f"Give at most {MAX_FILES} images, best four to eight; found {len(files)}.")
    found: list[tuple[Path, tuple[int, int] | None, str]] = []
    for file in files:
        try:
            found.append((file, read_upload(file).size, ""))
        except HRAError as error:
            found.append((file, None, str(error)))
    return found


def with_effort(effort: Preset, **changes: int | None) -> Preset:
    """Return an effort with what is not None changed."""
    return replace(effort, **{name: value for name, value in changes.items() if value is not None})
