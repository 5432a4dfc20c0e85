"""Parts of the base model that an adapter trains as they are: whole modules, and biases."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.wrapper import Wrapper

_COPY = "trained_"


class TrainedCopy(Wrapper):
    """A frozen module and a trained copy of it for each adapter that has one; the acting adapter's copy answers calls.

    Attributes:
        acting: name of the adapter whose copy answers; the frozen module does when None.
    """

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.acting: str | None = None

    @property
    def copies(self) -> dict[str, nn.Module]:
        """The trained copies by adapter."""
        return {
            name.removeprefix(_COPY): module
            for name, module in self._modules.items()
            if module is not None and name.startswith(_COPY)
        }

    def put_copy(self, adapter_name: str, module: nn.Module) -> None:
        """Add an adapter's copy."""
        self.add_module(_COPY + adapter_name, module)

    def drop_copy(self, adapter_name: str) -> None:
        """Remove an adapter's copy, if there is one."""
        self._modules.pop(_COPY + adapter_name, None)

    @property
    def answering(self) -> nn.Module:
        """The module that answers calls."""
        return self.base_layer if self.acting is None else self.copies[self.acting]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the answering module."""
        return self.answering(*args, **kwargs)


class TrainedBiases:
    """Biases of the base model that an adapter trains where they are; the originals are kept aside and change places.

    Args:
        parameters: the biases by name.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.acting = True
        self._aside: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def act(self, acting: bool) -> None:
        """Put the trained values in place, or the original ones."""
        if acting != self.acting:
            for name, parameter in self.parameters.items():
                present = parameter.data
                parameter.data = self._aside[name].to(present.device, present.dtype)
                self._aside[name] = present
            self.acting = acting

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Set trained values by name."""
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def trained(self) -> dict[str, Tensor]:
        """Return the trained values by name."""
        return {name: p.detach() for name, p in self.parameters.items()} if self.acting else dict(self._aside)
