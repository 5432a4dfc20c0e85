"""Metrics of adapters and controls, with intervals: the same code for the judge, CLIP and DINO.

`generation` makes the images, `encoders` turns images and texts into unit vectors, `scores` and `agreement` compare,
`bootstrap` adds intervals, `subject` and `control` measure, and `report` writes the results.

A public name's module is imported when the name is first used. The table below is the only list of the names; type
checkers read the modules by wildcard imports.
"""

# ruff: noqa: F403

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hra_diffusion.metrics.bootstrap import *
    from hra_diffusion.metrics.control import *
    from hra_diffusion.metrics.generation import *
    from hra_diffusion.metrics.models import *
    from hra_diffusion.metrics.report import *
    from hra_diffusion.metrics.subject import *
else:
    from hra_diffusion.lazy import attach

    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "hra_diffusion.metrics.bootstrap": ("Estimate",),
            "hra_diffusion.metrics.control": ("Trial",),
            "hra_diffusion.metrics.generation": ("EvaluationPlan", "Generations", "make_evaluation_plan"),
            "hra_diffusion.metrics.models": ("MetricModels", "load_metric_models"),
            "hra_diffusion.metrics.report": ("Measurement", "Report"),
            "hra_diffusion.metrics.subject": ("measure_subject",),
        },
    )
