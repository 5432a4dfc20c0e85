"""Training: from a folder of images to an adapter.

A task (`DreamBooth`, `ControlNet`) names the training images; `prepare_run` makes a run of it, whose steps are a
generator.
A public name's module is imported when the name is first used: settings need no torch.
"""

# ruff: noqa: F403
# pyright: reportWildcardImportFromLibrary=false

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hra_diffusion.training.config import *
    from hra_diffusion.training.config.defaults import *
    from hra_diffusion.training.controlnet import *
    from hra_diffusion.training.dreambooth import *
    from hra_diffusion.training.loop.steps import *
    from hra_diffusion.training.prepare import *
    from hra_diffusion.training.run import *
    from hra_diffusion.training.task import *
else:
    from hra_diffusion.lazy import attach

    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "hra_diffusion.training.config": ("ControlNetConfig", "DreamBoothConfig"),
            "hra_diffusion.training.config.defaults": ("make_config",),
            "hra_diffusion.training.controlnet": ("ControlNet",),
            "hra_diffusion.training.dreambooth": ("DreamBooth",),
            "hra_diffusion.training.loop.steps": ("StepRecord",),
            "hra_diffusion.training.prepare": ("prepare_run",),
            "hra_diffusion.training.run": ("Run",),
            "hra_diffusion.training.task": ("Task",),
        },
    )
