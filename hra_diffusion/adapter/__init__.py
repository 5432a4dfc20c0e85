"""HRA adapters for any torch model, on torch alone."""

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.adapter.layers import HRAConv2d, HRALinear
from hra_diffusion.adapter.model import HRAModel

__all__ = ["HRAConfig", "HRAConv2d", "HRALayer", "HRALinear", "HRAModel"]
