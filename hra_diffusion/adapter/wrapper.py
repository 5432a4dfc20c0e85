"""What stands in a module's place and looks like it."""

from typing import Any

from torch import nn


class Wrapper(nn.Module):
    """A module in the place of another, which it holds: `base_layer`, the very object, so that it can be put back."""

    base_layer: Any

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer

    def get_base_layer(self) -> nn.Module:
        """Stay where PEFT takes its own layers out, which it knows by this name."""
        return self

    def __getattr__(self, name: str) -> Any:
        """Look like the module inside: `weight`, `bias`, `in_features`, … are its own."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(super().__getattr__("base_layer"), name)
