"""HRAModel: an adapted model and its files."""

from pathlib import Path
from typing import Any, Final

from torch import nn

from hra_diffusion.adapter.model import AdaptedModel
from hra_diffusion.formats.hub import check_arguments, local_folder
from hra_diffusion.formats.peft import FILES, read_adapter_for, save_adapter

# The default of save_pretrained's `variant`; a pipeline passes one, possibly None.
_NOT_GIVEN: Final = "not given"


class HRAModel(AdaptedModel):
    """A model with HRA adapters, to be saved in PEFT's layout and loaded from it.

    It has the attributes and the class of the model. The model is changed in place: an adapted layer replaces each
    target module and holds it, and everything except the adapters is frozen. `unload` restores every module, the same
    objects, and their `requires_grad`.

    >>> model = HRAModel(unet, HRAConfig(r=8, target_modules=["to_q", "to_v"]))
    >>> model.save_pretrained("adapter")
    >>> model = HRAModel.from_pretrained(model.unload(), "adapter")

    The arguments of the constructor are those of `AdaptedModel`.
    """

    def save_pretrained(
        self,
        save_directory: str | Path,
        adapter_name: str = "default",
        *,
        variant: str | None = _NOT_GIVEN,
        safe_serialization: bool = True,
        max_shard_size: int | str | None = None,
    ) -> None:
        """Write one adapter in PEFT's layout.

        A pipeline saves its components with a `variant`, possibly None. Then the base model is written without
        adapters, and the last three arguments are passed to its own save_pretrained.

        Raises:
            ConfigError: the adapter is unknown.
            OutputError: the folder cannot be written; its content is unchanged.
        """
        if variant == _NOT_GIVEN:
            save_adapter(self, save_directory, adapter_name)
            return
        options = {"variant": variant, "safe_serialization": safe_serialization, "max_shard_size": max_shard_size}
        self._save_base(save_directory, **options)

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        *,
        subfolder: str | None = None,
        **hub: Any,
    ) -> "HRAModel":
        """Load an adapter in PEFT's layout from a folder or the Hugging Face hub into a model.

        Args:
            model: any module, or an HRAModel, which gets one more adapter.
            model_id: a folder, or the id of a repository on the hub.
            adapter_name: the adapter's name in the model.
            is_trainable: make the adapter trainable.
            subfolder: the adapter's folder within `model_id`.
            hub: arguments of `huggingface_hub.snapshot_download`: revision, token, cache_dir, …

        Raises:
            AdapterFileError: the files are missing, damaged, or do not fit; the model is unchanged.
        """
        check_arguments(cls.from_pretrained, hub)
        config, tensors = read_adapter_for(model, local_folder(model_id, subfolder, FILES, **hub), is_trainable)
        if not isinstance(model, HRAModel):
            return cls(model, config, adapter_name, state_dict=tensors)
        model.add_adapter(adapter_name, config, state_dict=tensors)
        return model
