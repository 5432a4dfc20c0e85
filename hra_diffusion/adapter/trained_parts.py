"""Modules and biases of the base model that an adapter trains in full."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.mixture import Mixture
from hra_diffusion.adapter.rows import Rows, call_by_adapter
from hra_diffusion.adapter.wrapper import Wrapper

_COPY = "modules_to_save_"


class TrainedCopy(Wrapper):
    """A frozen module with one trained copy for each adapter that trains it.

    Attributes:
        active: name of the adapter whose copy is called; None for the frozen module.
        rows: the adapters of the examples in a mixed batch; None for the active one.
        adapter_layer_names: PEFT's list of the attributes with parts of adapters.
        other_param_names: PEFT's list of further ones.
    """

    adapter_layer_names: Final = ("modules_to_save",)
    other_param_names: Final = ()

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__(base_layer)
        self.active: str | None = None
        self.rows: Rows | None = None

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

    def remove_copy(self, adapter_name: str) -> None:
        """Remove an adapter's copy, if present."""
        self._modules.pop(_COPY + adapter_name, None)

    @property
    def active_module(self) -> nn.Module:
        """The copy of the active adapter, or the frozen module."""
        return self.base_layer if self.active is None else self.copies[self.active]

    @property
    def modules_to_save(self) -> nn.ModuleDict:
        """The trained copies by PEFT's name."""
        return nn.ModuleDict(self.copies)

    @property
    def active_adapters(self) -> list[str]:
        """The adapter whose copy is called, if any."""
        return [] if self.active is None else [self.active]

    def __getattr__(self, name: str) -> Any:
        """Return attributes of the active module: some modules read the weights of others instead of calling them."""
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            if name in ("base_layer", "active"):
                raise
            return getattr(self.active_module, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the active module; in a mixed batch, the copy of each row's adapter."""
        if self.rows is None:
            return self.active_module(*args, **kwargs)
        x, *others = args
        return call_by_adapter(self.rows, x, lambda x, mixture: self._module_of_rows(mixture)(x, *others, **kwargs))

    def _module_of_rows(self, mixture: Mixture) -> nn.Module:
        names = (name for blend in mixture for name, _ in blend)
        return next((self.copies[name] for name in names if name in self.copies), self.base_layer)


class TrainedBiases:
    """Biases of the base model that an adapter trains in place; the inactive values are kept aside.

    Args:
        parameters: the biases by name.

    Attributes:
        active: whether the parameters hold the trained values instead of the original ones.
    """

    def __init__(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        self.active = True
        self._aside: dict[str, Tensor] = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def activate(self, active: bool) -> None:
        """Put the trained values into the parameters, or the original ones."""
        if active != self.active:
            for name, parameter in self.parameters.items():
                present = parameter.data
                parameter.data = self._aside[name].to(present.device, present.dtype)
                self._aside[name] = present
            self.active = active

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor]) -> None:
        """Set trained values by name."""
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def trained(self) -> dict[str, Tensor]:
        """Return the trained values by name."""
        return {name: p.detach() for name, p in self.parameters.items()} if self.active else dict(self._aside)
