"""Evaluation of adapters and controls: generate images, measure them, write the results.

A public name's module is imported when the name is first used: the configs need no torch. The table below is the only
list of the names; type checkers read the modules by wildcard imports.
"""

# ruff: noqa: F403
# pyright: reportWildcardImportFromLibrary=false

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hra_diffusion.evaluation.checkpoints import *
    from hra_diffusion.evaluation.config import *
    from hra_diffusion.evaluation.control import *
    from hra_diffusion.evaluation.subject import *
else:
    from hra_diffusion.lazy import attach

    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "hra_diffusion.evaluation.checkpoints": ("CheckpointChoice", "evaluate_checkpoints"),
            "hra_diffusion.evaluation.config": ("EvaluateConfig", "EvaluateControlConfig"),
            "hra_diffusion.evaluation.control": ("evaluate_control", "read_trial"),
            "hra_diffusion.evaluation.subject": ("evaluate_adapter", "evaluate_run"),
        },
    )
