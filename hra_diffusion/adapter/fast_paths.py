"""torch's fast paths of transformer encoders, which read the weights of layers instead of calling them."""

from collections.abc import Iterable
from typing import Any, Final

from torch import nn

# Attributes whose false value makes a module call its layers in evaluation mode, as it does in training mode.
_SWITCHES: Final[dict[type[nn.Module], tuple[str, Any]]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}


class FastPaths:
    """The switched-off fast paths of one model: those around its adapted layers.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._original: dict[nn.Module, tuple[str, Any]] = {}

    def switch(self, adapted: Iterable[str]) -> None:
        """Switch off the fast paths around modules of these names, and restore all others."""
        names = list(adapted)
        for parent, (attribute, value) in self._original.items():
            setattr(parent, attribute, value)
        self._original.clear()
        for name, parent in self._model.named_modules() if names else ():
            prefix = f"{name}." if name else ""
            switches = [switch for kind, switch in _SWITCHES.items() if isinstance(parent, kind)]
            if switches and any(other.startswith(prefix) for other in names):
                attribute, value = switches[0]
                self._original[parent] = attribute, getattr(parent, attribute)
                setattr(parent, attribute, value)
