"""diffusers' methods of one component with adapters, such as `pipe.unet.disable_adapters()`."""

from collections.abc import Sequence
from typing import Any

from hra_diffusion.adapter.adapter_mixin import AdapterMixin, one_or_several


class DiffusersVerbs(AdapterMixin):
    """Names of diffusers' PeftAdapterMixin. Those of the model alone would leave HRA adapters as they are."""

    delete_adapter: Any

    def enable_adapters(self) -> None:
        """Enable the active adapters, and LoRAs in the same model."""
        self.enable_adapter_layers()
        self._call_for_loras("enable_adapters")

    def disable_adapters(self) -> None:
        """Disable all adapters, and LoRAs in the same model."""
        self.disable_adapter_layers()
        self._call_for_loras("disable_adapters")

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Delete adapters, or LoRAs in the same model.

        Raises:
            ConfigError: an adapter is unknown or merged; nothing is deleted.
        """
        names = one_or_several(adapter_names)
        loras = [name for name in names if name not in self.peft_config and name in self._lora_names()]
        adapters = [name for name in names if name not in loras]
        self._activation.check_known(*adapters)
        for name in adapters:
            self.delete_adapter(name)
        if loras:
            self._call_for_loras("delete_adapters", loras)

    def _lora_names(self) -> list[str]:
        return list(vars(self.model).get("peft_config", ()))

    def _call_for_loras(self, verb: str, *arguments: Any) -> None:
        if self._lora_names():
            getattr(self.model, verb)(*arguments)
