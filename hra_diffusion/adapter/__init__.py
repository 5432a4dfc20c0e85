"""HRA adapters for any torch model, on torch alone."""

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.layers import HRALayer, HRALinear
from hra_diffusion.adapter.model import HRAModel

__all__ = ["HRAConfig", "HRALayer", "HRALinear", "HRAModel"]
