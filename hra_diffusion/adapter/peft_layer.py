"""PEFT's names for an adapted layer."""

from collections.abc import Sequence
from typing import Final

from hra_diffusion.adapter.columns import ColumnStore
from hra_diffusion.adapter.magnitudes import MagnitudeStore
from hra_diffusion.adapter.mixture import Mixture


class PeftLayerNames:
    """Attributes of PEFT's BaseTunerLayer."""

    adapter_layer_names: Final = ("hra_u",)
    other_param_names: Final = ()

    columns: ColumnStore
    magnitudes: MagnitudeStore
    mixture: Mixture
    merged: Mixture
    enabled: bool

    @property
    def active_adapters(self) -> list[str]:
        """Names of the model's active adapters, whether this layer has them or not."""
        return [name for blend in self.mixture for name, _ in blend]

    @property
    def merged_adapters(self) -> list[str]:
        """Names of the adapters in the layer's weight."""
        return [name for blend in self.merged for name, _ in blend]

    def set_adapter(self, adapter_names: str | Sequence[str]) -> None:
        """Activate adapters in this layer alone, as an ordered product at full strength, until the model's change."""
        names = (adapter_names,) if isinstance(adapter_names, str) else tuple(adapter_names)
        self.mixture = tuple(((name, 1.0),) for name in names)
        self.magnitudes.activate(self.mixture)

    def enable_adapters(self, enabled: bool) -> None:
        """Enable or disable the adapters in this layer alone, until the model's change."""
        self.enabled = enabled

    def _all_available_adapter_names(self) -> list[str]:
        return sorted(self.columns)

    @property
    def disable_adapters(self) -> bool:
        """Whether the adapters are disabled."""
        return not self.enabled
