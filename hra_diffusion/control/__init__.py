"""Control of images by a condition: edges, depth, a segmentation, a pose (controllable generation, arXiv 2405.17484).

An annotator makes the condition of an image, an encoder maps it to features, and the denoiser's HRA adapter uses them.
"""

from hra_diffusion.control.annotators import ANNOTATORS, Annotator, make_annotator
from hra_diffusion.control.conditions import fit, read_condition, read_control_image
from hra_diffusion.control.encoder import ConditionEncoder, make_encoder, to_conditions
from hra_diffusion.control.guiding import Control, adding
from hra_diffusion.control.loading import load_hra_control, save_hra_control
from hra_diffusion.control.pipeline import StableDiffusionHRAControlPipeline

__all__ = [
    "ANNOTATORS",
    "Annotator",
    "ConditionEncoder",
    "Control",
    "StableDiffusionHRAControlPipeline",
    "adding",
    "fit",
    "load_hra_control",
    "make_annotator",
    "make_encoder",
    "read_condition",
    "read_control_image",
    "save_hra_control",
    "to_conditions",
]
