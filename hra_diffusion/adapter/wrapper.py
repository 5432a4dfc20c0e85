"""Modules that wrap another module and expose its attributes."""

from typing import Any

from torch import nn


class Wrapper(nn.Module):
    """A wrapper that replaces a module and holds the same object as `base_layer`, to put it back later."""

    base_layer: Any

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def get_base_layer(self) -> nn.Module:
        """Return this wrapper: PEFT replaces layers that have such a method by its result."""
        return self

    def __getattr__(self, name: str) -> Any:
        """Return attributes of the base layer, such as `weight`, `bias` and `in_features`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(super().__getattr__("base_layer"), name)
