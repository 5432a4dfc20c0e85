"""hra_diffusion: personalize diffusion models with Householder Reflection Adaptation (HRA, arXiv 2405.17484).

Importing the package loads neither torch nor diffusers: a public name's module is imported when the name is first used.
The table below is the only list of the public names. Type checkers read the modules instead, by wildcard imports: a
second list of names would have to be kept equal by hand.
"""

# ruff: noqa: F403
# pyright: reportGeneralTypeIssues=false, reportWildcardImportFromLibrary=false

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hra_diffusion.adapter import *
    from hra_diffusion.control import *
    from hra_diffusion.errors import *
    from hra_diffusion.evaluation import *
    from hra_diffusion.model import *
    from hra_diffusion.pipelines import *
    from hra_diffusion.training import *
    from hra_diffusion.version import __version__ as __version__
else:
    from hra_diffusion.lazy import attach

    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "hra_diffusion.adapter": ("HRAConfig", "initialize_from_gradient"),
            "hra_diffusion.control": ("StableDiffusionHRAControlPipeline", "load_hra_control", "save_hra_control"),
            "hra_diffusion.errors": (
                "AdapterFileError",
                "BusyError",
                "ConfigError",
                "DivergedError",
                "HRAError",
                "ImageError",
                "MergeError",
                "MissingExtraError",
                "ModelError",
                "OutOfMemoryError",
                "OutputError",
                "TargetError",
            ),
            "hra_diffusion.model": ("HRAModel",),
            "hra_diffusion.pipelines": (
                "disable_hra",
                "export_lora",
                "fit_lora",
                "fuse_hra",
                "generate_image",
                "list_hra_adapters",
                "load_hra_weights",
                "load_pipeline",
                "merge_hra",
                "push_hra_weights",
                "save_hra_weights",
                "set_hra_adapters",
                "unfuse_hra",
                "unload_hra_weights",
                "using_hra_adapters",
            ),
            "hra_diffusion.evaluation": (
                "EvaluateConfig",
                "EvaluateControlConfig",
                "evaluate_adapter",
                "evaluate_control",
            ),
            "hra_diffusion.training": (
                "ControlNet",
                "ControlNetConfig",
                "DreamBooth",
                "DreamBoothConfig",
                "make_config",
                "prepare_run",
            ),
            "hra_diffusion.version": ("__version__",),
        },
    )
