"""HRA adapters for any torch model; needs torch only."""

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.gradient_start import initialize_from_gradient
from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.adapter.layers import HRAConv2d, HRALinear
from hra_diffusion.adapter.model import AdaptedModel

__all__ = ["AdaptedModel", "HRAConfig", "HRAConv2d", "HRALayer", "HRALinear", "initialize_from_gradient"]
