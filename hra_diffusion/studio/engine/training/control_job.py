"""A training job of a control: images with captions, and with conditions that an annotator makes or that are given."""

from dataclasses import dataclass
from pathlib import Path

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.files import write_file
from hra_diffusion.studio.engine.setting_error import SettingError
from hra_diffusion.studio.engine.training.training_images import TrainingImage, read_cropped_condition
from hra_diffusion.studio.engine.training.training_job import IMAGES, Preset, TrainingJob
from hra_diffusion.studio.engine.uploads import DECODING
from hra_diffusion.training.config import ControlNetConfig, TrainingConfig
from hra_diffusion.training.config.defaults import embedded_defaults
from hra_diffusion.training.config.file import flat_values, with_values

TRAINING_ANNOTATORS = {
    "canny": "thin edges",
    "scribble": "thick strokes",
    "soft_edge": "soft edges",
    "color": "blocks of color",
}
"""Annotators that make conditions of any image without a model, with a label for each."""
GIVEN = "given"
"""The annotator of given conditions that none of `TRAINING_ANNOTATORS` made."""
_CONDITIONS = "conditioning_images"
"""Folder of the conditions, as the command reads it."""
CONTROL_PRESETS = {
    "Quick look": Preset(steps=500, class_images=0, validations=2),
    "Usual": Preset(steps=2000, class_images=0),
    "Thorough": Preset(steps=4000, class_images=0),
}


@dataclass(frozen=True, kw_only=True)
class ControlJob(TrainingJob):
    """The images and settings of a control's training job; prefix and class make captions of images without one."""

    subject: str = ""
    annotator: str = "canny"
    """A key of `TRAINING_ANNOTATORS`: it makes the conditions, or made the given ones; or `GIVEN`."""
    preset: Preset = CONTROL_PRESETS["Usual"]

    @classmethod
    def defaults(cls, *, embedded: bool, text_encoders_train: bool) -> ControlNetConfig:
        """Return the settings with which a job starts; its text encoders are never trained."""
        return embedded_defaults(ControlNetConfig, "embedded_control.toml") if embedded else ControlNetConfig()

    def check_words(self) -> None:
        """Raise ConfigError for invalid words, or an image without a caption and without a class."""
        if self.annotator not in (*TRAINING_ANNOTATORS, GIVEN):
            known = ", ".join((*TRAINING_ANNOTATORS, GIVEN))
            raise ConfigError(f"There is no annotator {self.annotator[:80]!r} of a training job; known are: {known}.")
        if self.annotator == GIVEN and not all(image.condition for image in self.images):
            raise SettingError("conditions", "are missing: upload them, or choose an annotator that makes them.")
        if self.subject.strip() or not all(image.caption.strip() for image in self.images):
            super().check_words()

    def caption(self, image: TrainingImage) -> str:
        """Return the caption of an image, or the class prompt."""
        return image.caption.strip() or self.class_prompt

    def write(self, folder: Path, config: TrainingConfig) -> None:
        """Write the files of `TrainingJob.write`, and the given conditions; errors likewise."""
        super().write(folder, config)
        for number, image in enumerate(self.images):
            if image.condition:
                with DECODING:
                    condition = read_cropped_condition(image, image.condition)
                    write_file(folder / IMAGES / _CONDITIONS / f"{number:03d}.png", condition.save)

    def config(self, base: str, default: TrainingConfig, folder: Path) -> TrainingConfig:
        """Return the settings of the run; arguments as in `TrainingJob.config`.

        Raises:
            SettingError: an option is one of subjects alone.
        """
        preset, known = self.preset, flat_values(default)
        for name in self.options:
            if name not in known:
                raise SettingError(
                    name, "are for subjects: leave the field empty. A control's prompts are the captions."
                )
        return with_values(
            default,
            {
                "pretrained_model_name_or_path": base,
                "train_data_dir": folder / IMAGES,
                "annotator": self.annotator,
                "rank": preset.rank,
                "max_train_steps": preset.steps,
                "checkpointing_steps": max(1, preset.steps // 4),
                "checkpoints_total_limit": None,
                "validation_steps": max(1, preset.steps // preset.validations) if preset.validations else None,
                "num_validation_images": min(2, len(self.images)),
                "num_inference_steps": preset.inference_steps,
                "output_dir": folder,
                "report_to": "none",
                **self.options,
            },
        )


def condition_of(image: Path) -> Path | None:
    """Return the given condition of an image in a job's folder, or None."""
    condition = image.parent / _CONDITIONS / image.name
    return condition if condition.is_file() else None
