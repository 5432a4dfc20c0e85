"""HRAModel: an adapted model and its files, with the methods of PEFT's PeftModel that savers and trainers call."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.model import AdaptedModel
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.adapter_card import CARD, adapter_card
from hra_diffusion.formats.files import write_file, write_together
from hra_diffusion.formats.hub import check_arguments, local_folder, upload_folder
from hra_diffusion.formats.peft import FILES, adapter_files, read_adapter_for, read_file_metadata

# The default of save_pretrained's `variant`; a pipeline passes one, possibly None.
_NOT_GIVEN: Final = "not given"


class LoadResult(NamedTuple):
    """The names of tensors that were missing or unexpected in loading, as in PEFT."""

    missing_keys: list[str]
    unexpected_keys: list[str]


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
        adapter_name: str | None = None,
        *,
        selected_adapters: Sequence[str] | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        is_main_process: bool = True,
        variant: str | None = _NOT_GIVEN,
        safe_serialization: bool = True,
        max_shard_size: int | str | None = None,
        save_embedding_layers: bool | str = "auto",
        push_to_hub: bool = False,
        repo_id: str | None = None,
        save_function: Any = None,
        **hub: Any,
    ) -> None:
        """Write adapters in PEFT's layout, and a model card.

        A pipeline saves its components with a `variant`, possibly None. Then the base model is written without
        adapters, and `variant`, `safe_serialization` and `max_shard_size` are passed to its own save_pretrained.

        Args:
            save_directory: the folder. As in PEFT, the adapter "default" is in the folder itself, and others are in
                folders of their names within.
            adapter_name: write this adapter alone, into the folder itself.
            selected_adapters: names of the adapters to write; all by default.
            state_dict: values of the trained parameters, by their names in this object, instead of the present ones;
                savers of sharded models pass them.
            is_main_process: whether to write anything.
            variant: of a base model's files.
            safe_serialization: must be True: adapters are never pickled.
            max_shard_size: of a base model's files.
            save_embedding_layers: whole embeddings are not adapters; name them in `modules_to_save`.
            push_to_hub: publish the folder afterwards.
            repo_id: the repository; the folder's name by default.
            save_function: ignored, since safetensors writes the files.
            hub: arguments of `push_to_hub`.

        Raises:
            ConfigError: an adapter is unknown, or an argument asks for what is not supported.
            AdapterFileError: a weight is not finite.
            OutputError: the folder cannot be written; its content is unchanged.
        """
        if variant != _NOT_GIVEN:
            options = {"variant": variant, "safe_serialization": safe_serialization, "max_shard_size": max_shard_size}
            self._save_base(save_directory, **options)
            return
        if not safe_serialization:
            raise ConfigError("safe_serialization is False, but adapters are never pickled: leave it out.")
        if save_embedding_layers is True:
            raise ConfigError("save_embedding_layers is True: name the embeddings in modules_to_save instead.")
        check_arguments(self.save_pretrained, hub, upload_folder)
        if not is_main_process:
            return
        folder = Path(save_directory)
        names = [adapter_name] if adapter_name else list(selected_adapters or self.peft_config)
        contents: dict[Path, bytes] = {}
        with self.parameters_replaced(state_dict or {}):
            for name in names:
                target = folder if name == "default" or name == adapter_name else folder / name
                contents |= {target / file: data for file, data in adapter_files(self, name).items()}
        write_together(contents)
        if not (folder / CARD).exists():
            self.create_or_update_model_card(folder)
        if push_to_hub:
            upload_folder(folder, repo_id or folder.resolve().name, **hub)

    def create_or_update_model_card(self, output_dir: str | Path) -> None:
        """Write README.md into an adapter's folder, or complete the hub's metadata of a present one."""
        path = Path(output_dir) / CARD
        text = path.read_text(encoding="utf-8") if path.exists() else None
        base = self.active_peft_config.base_model_name_or_path or getattr(self.model, "name_or_path", None)
        card = adapter_card(text, base or None, self.active_peft_config.task_type)
        write_file(path, lambda new: new.write_text(card, encoding="utf-8"))

    def push_to_hub(self, repo_id: str, **hub: Any) -> str:
        """Publish the adapters on the Hugging Face hub, and return the commit's address.

        Args:
            repo_id: the repository, created if need be.
            hub: commit_message, private, token, revision, create_pr.

        Raises:
            OutputError: the hub refuses them.
            TypeError: there is no argument of some name.
        """
        check_arguments(self.push_to_hub, hub, upload_folder)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload_folder(Path(folder), repo_id, **hub)

    @classmethod
    def from_pretrained(
        cls,
        model: nn.Module,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: HRAConfig | None = None,
        autocast_adapter_dtype: bool = True,
        **options: Any,
    ) -> "HRAModel":
        """Load an adapter in PEFT's layout from a folder or the Hugging Face hub into a model.

        The model is in evaluation mode afterwards, unless the adapter is trainable.

        Args:
            model: any module, or an HRAModel, which gets one more adapter.
            model_id: a folder, or the id of a repository on the hub.
            adapter_name: the adapter's name in the model.
            is_trainable: make the adapter trainable.
            config: settings instead of those in the folder; their `inference_mode` is set, as in PEFT.
            autocast_adapter_dtype: keep the columns in float32; False for the half precision of their layer's weight.
            options: see `load_adapter`.

        Raises:
            AdapterFileError: the files are missing, damaged, or do not fit; the model is unchanged.
        """
        settings, tensors, metadata = _read(model, model_id, is_trainable, config, **options)
        autocast = autocast_adapter_dtype
        if not isinstance(model, HRAModel):
            model = cls(model, settings, adapter_name, state_dict=tensors, autocast_adapter_dtype=autocast)
        else:
            model.add_adapter(adapter_name, settings, state_dict=tensors, autocast_adapter_dtype=autocast)
        model.file_metadata[adapter_name] = metadata
        return model if is_trainable else model.eval()

    def load_adapter(
        self,
        model_id: str | Path,
        adapter_name: str = "default",
        is_trainable: bool = False,
        config: HRAConfig | None = None,
        autocast_adapter_dtype: bool = True,
        **options: Any,
    ) -> LoadResult:
        """Load an adapter from a folder or the hub: a new one, or new values of a present one.

        The model is in evaluation mode afterwards, unless the adapter is trainable.

        Args:
            model_id: a folder, or the id of a repository on the hub.
            adapter_name: the adapter's name. A present one keeps its settings and its `requires_grad`.
            is_trainable: make a new adapter trainable.
            config: settings instead of those in the folder; their `inference_mode` is set, as in PEFT.
            autocast_adapter_dtype: keep a new adapter's columns in float32; False for the half precision of their
                layer's weight.
            options: subfolder: the adapter's folder within `model_id`; ignore_mismatched_sizes: leave out, with a
                warning, columns of another length than the model's; key_mapping: replacements in the tensors' names, by
                regular expression, without PEFT's prefix; torch_device, device_map and low_cpu_mem_usage: accepted as
                in PEFT, since columns are on their layers' devices; arguments of `huggingface_hub.snapshot_download`:
                revision, token, cache_dir, …

        Returns:
            The names of missing and unexpected tensors, as in PEFT: none, since both raise.

        Raises:
            AdapterFileError: the files are missing, damaged, or do not fit; the model is unchanged.
        """
        settings, tensors, metadata = _read(self, model_id, is_trainable, config, **options)
        if adapter_name in self.peft_config:
            self.restore_adapter(adapter_name, settings, tensors)
        else:
            autocast = autocast_adapter_dtype
            self.add_adapter(adapter_name, settings, state_dict=tensors, autocast_adapter_dtype=autocast)
        self.file_metadata[adapter_name] = metadata
        if not is_trainable:
            self.eval()
        return LoadResult([], [])


def _read(
    model: nn.Module,
    model_id: str | Path,
    is_trainable: bool,
    config: HRAConfig | None,
    *,
    subfolder: str | None = None,
    ignore_mismatched_sizes: bool = False,
    key_mapping: Mapping[str, str] | None = None,
    torch_device: torch.device | str | None = None,
    low_cpu_mem_usage: bool = False,
    device_map: Any = None,
    **hub: Any,
) -> tuple[HRAConfig, dict[str, Tensor], dict[str, str]]:
    """Read an adapter's settings, tensors and metadata for a model; the arguments are those of `HRAModel.load_adapter`.

    Metadata such as a slot are not those of an adapter that is trained on.
    """
    check_arguments(_read, hub)
    folder = local_folder(model_id, subfolder, FILES, **hub)
    settings, tensors = read_adapter_for(
        model, folder, is_trainable, key_mapping=key_mapping, ignore_mismatched_sizes=ignore_mismatched_sizes
    )
    if config is not None:
        config.set_inference_mode(not is_trainable)
    return config or settings, tensors, {} if is_trainable else read_file_metadata(folder)
