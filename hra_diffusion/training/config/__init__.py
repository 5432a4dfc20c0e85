"""What a training run can be told: small frozen dataclasses, one a subject, with diffusers' names for the fields.

A field is a flag (``--learning_rate``) and a key of the TOML file (``learning_rate``) at once, so names are unique over
all groups. ``None`` means "not given": :func:`hra_diffusion.training.config.defaults.resolve` takes it from the model,
the image folder or the embedded base. Nothing heavy is imported here, so that ``--help`` answers at once.

A kind of run has a dataclass of such groups, whose base is :class:`TrainingConfig`, what every run is told.
"""

from hra_diffusion.training.config.adapter import AdapterConfig
from hra_diffusion.training.config.control import (
    ControlConfig,
    ControlNetConfig,
    ControlValidationConfig,
    PairsConfig,
)
from hra_diffusion.training.config.data import DataConfig, ImageConfig, ModelConfig, PriorConfig
from hra_diffusion.training.config.objective import ObjectiveConfig
from hra_diffusion.training.config.optimizer import OptimizerConfig
from hra_diffusion.training.config.root import DreamBoothConfig, TrainingConfig
from hra_diffusion.training.config.run import RunConfig, SubjectValidationConfig, ValidationConfig

__all__ = [
    "AdapterConfig",
    "ControlConfig",
    "ControlNetConfig",
    "ControlValidationConfig",
    "DataConfig",
    "DreamBoothConfig",
    "ImageConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimizerConfig",
    "PairsConfig",
    "PriorConfig",
    "RunConfig",
    "SubjectValidationConfig",
    "TrainingConfig",
    "ValidationConfig",
]
