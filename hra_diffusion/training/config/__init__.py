"""What a training run can be told: small frozen dataclasses, one a subject, with diffusers' names for the fields.

A field is a flag (``--learning_rate``) and a key of the TOML file (``learning_rate``) at once, so names are unique over
all groups. ``None`` means "not said": :func:`hra_diffusion.training.defaults.resolve` fills it in from the model, the
picture folder or the embedded base. Nothing heavy is imported here, so that ``--help`` answers at once.

A kind of run has a dataclass of such groups, whose base is :class:`TrainingConfig`, what every run is told.
"""

from hra_diffusion.training.config.control import (
    ControlConfig,
    ControlNetConfig,
    ControlPreviewConfig,
    PairsConfig,
)
from hra_diffusion.training.config.learning import AdapterConfig, ObjectiveConfig, OptimiserConfig
from hra_diffusion.training.config.material import DataConfig, ModelConfig, PictureConfig, PriorConfig
from hra_diffusion.training.config.running import PreviewConfig, RunConfig, SubjectPreviewConfig
from hra_diffusion.training.config.whole import DreamBoothConfig, TrainingConfig

__all__ = [
    "AdapterConfig",
    "ControlConfig",
    "ControlNetConfig",
    "ControlPreviewConfig",
    "DataConfig",
    "DreamBoothConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimiserConfig",
    "PairsConfig",
    "PictureConfig",
    "PreviewConfig",
    "PriorConfig",
    "RunConfig",
    "SubjectPreviewConfig",
    "TrainingConfig",
]
