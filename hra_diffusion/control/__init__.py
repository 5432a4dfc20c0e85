"""Images that follow a condition: edges, depth, a segmentation, a pose (controllable generation, arXiv 2405.17484).

An annotator makes the condition of an image, an encoder reads it, an adapter of reflections makes the UNet follow it.
"""

from hra_diffusion.control.annotators import ANNOTATORS, Annotator, make_annotator
from hra_diffusion.control.conditions import read_condition, read_image_for
from hra_diffusion.control.encoder import ConditionEncoder, encoder_for, to_conditions
from hra_diffusion.control.guiding import Control, adding, fit
from hra_diffusion.control.loading import load_hra_control, save_hra_control
from hra_diffusion.control.pipeline import StableDiffusionHRAControlPipeline

__all__ = [
    "ANNOTATORS",
    "Annotator",
    "ConditionEncoder",
    "Control",
    "StableDiffusionHRAControlPipeline",
    "adding",
    "encoder_for",
    "fit",
    "load_hra_control",
    "make_annotator",
    "read_condition",
    "read_image_for",
    "save_hra_control",
    "to_conditions",
]
