"""Settings of a training run: small frozen dataclasses, one a subject, with diffusers' names for the fields.

A field is a flag (``--learning_rate``) and a key of the TOML file (``learning_rate``), so names are unique over all
groups. Its docstring is the flag's help. ``None`` means "not given": :mod:`hra_diffusion.training.config.defaults`
takes the value from the model, the image folder or the embedded base. Nothing heavy is imported here, so that
``--help`` is fast.

Each kind of run has a subclass of :class:`TrainingConfig` with its groups.
"""

from hra_diffusion.training.config.adapter import AdapterConfig
from hra_diffusion.training.config.control import (
    ControlConfig,
    ControlNetConfig,
    ControlValidationConfig,
    PairsConfig,
)
from hra_diffusion.training.config.data import DataConfig, ImageConfig, PriorConfig
from hra_diffusion.training.config.model import ModelConfig
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
