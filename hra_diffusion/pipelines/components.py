"""The components of a pipeline that hold adapters, and access to their tensors while a pipeline offloads models."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.run_folder import base_files
from hra_diffusion.model import HRAModel
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.text import nearest

# threading.RLock is a function, and the class behind it has no public name.
_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_creating_lock = threading.Lock()
_OPTIONS = "_hra_base_options"


def adapted_components(pipe: Pipeline) -> dict[str, HRAModel]:
    """Return the components of a pipeline that hold HRA adapters, by name."""
    adapted = {name: adapted_model(model) for name, model in models(pipe).items()}
    return {name: model for name, model in adapted.items() if model is not None}


def adapted_model(model: nn.Module) -> HRAModel | None:
    """Return the object with a component's adapters; None without any.

    Pipelines share components: another one may have loaded adapters into a model, or unloaded them.
    """
    bare = bare_model(model)
    owner = getattr(vars(bare).get("save_pretrained"), "__self__", None)
    if owner is None and (held := uncompiled(model)) is not bare and isinstance(held, HRAModel) and held.peft_config:
        owner = held  # a model without files of its own
    return owner if isinstance(owner, HRAModel) else None


def bare_model(model: nn.Module) -> nn.Module:
    """Return a component without compilation and adapters."""
    model = uncompiled(model)
    return model.model if isinstance(model, HRAModel) else model


def denoiser_name(pipe: Pipeline) -> str:
    """Return the name of the denoising component: unet or transformer."""
    return "unet" if "unet" in pipe.components else "transformer"


def tokenizer_name(text_encoder: str) -> str:
    """Return the name of a text encoder's tokenizer, which has the same number."""
    return text_encoder.replace("text_encoder", "tokenizer")


def tokenizer_of(pipe: Pipeline, text_encoder: str) -> Any:
    """Return a text encoder's tokenizer, or that of its processor."""
    from transformers import PreTrainedTokenizerBase  # a pipeline with tokenizers has imported it

    tokenizer = getattr(pipe, tokenizer_name(text_encoder))
    return tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else getattr(tokenizer, "tokenizer", tokenizer)


def set_tokenizer(pipe: Pipeline, text_encoder: str, tokenizer: Any) -> None:
    """Replace a text encoder's tokenizer, or that of its processor."""
    name = tokenizer_name(text_encoder)
    if getattr(pipe, name) is tokenizer_of(pipe, text_encoder):
        setattr(pipe, name, tokenizer)
    else:
        getattr(pipe, name).tokenizer = tokenizer


def set_base_options(pipe: Pipeline, options: Mapping[str, Any]) -> None:
    """Let a pipeline keep the options of `load_pipeline`, which its adapters' folders record."""
    setattr(pipe, _OPTIONS, options)


def base_options_of(pipe: Pipeline) -> Mapping[str, Any]:
    """Return the options of `load_pipeline` that a pipeline keeps."""
    return getattr(pipe, _OPTIONS, {})


def base_files_of(pipe: Pipeline, mixed_precision: str = "no") -> dict[str, bytes]:
    """Return the file that records a pipeline's base in an adapter's folder, if any: see `base_files`."""
    return base_files(base_options_of(pipe), mixed_precision)


def models(pipe: Pipeline) -> dict[str, nn.Module]:
    """Return the components of a pipeline that are models, by name."""
    return {name: component for name, component in pipe.components.items() if isinstance(component, nn.Module)}


def text_encoders(pipe: Pipeline) -> dict[str, Any]:
    """Return a pipeline's text encoders by name, in the order of their features in a prompt's embeddings."""
    return {name: model for name, model in sorted(models(pipe).items()) if name.startswith("text_encoder")}


def module_names(pipe: Pipeline) -> list[tuple[str, str]]:
    """Return component and name of every module of a pipeline's models, without the modules of adapters."""
    return [(name, module) for name, model in _bare_models(pipe) for module, _ in model.named_modules()]


def output_widths(pipe: Pipeline) -> dict[tuple[str, str], int]:
    """Return the output width of every linear layer of a pipeline's models, by component and name."""
    return {
        (name, module): width
        for name, model in _bare_models(pipe)
        for module, layer in model.named_modules()
        if isinstance(width := getattr(layer, "out_features", None), int)
    }


def transformer_class(pipe: Pipeline) -> str | None:
    """Return the class of a pipeline's denoiser if it is a transformer."""
    return type(bare_model(pipe.transformer)).__name__ if "transformer" in pipe.components else None


def _bare_models(pipe: Pipeline) -> list[tuple[str, nn.Module]]:
    bare = {name: adapted.model for name, adapted in adapted_components(pipe).items()}
    return list((models(pipe) | bare).items())


def holders(pipe: Pipeline, *adapter_names: str) -> dict[str, HRAModel]:
    """Return the components that hold one of the adapters, by name.

    Raises:
        ConfigError: no component holds an adapter of such a name.
    """
    components = adapted_components(pipe)
    known = dict.fromkeys(name for component in components.values() for name in component.peft_config)
    for name in adapter_names:
        if name not in known:
            others = nearest(name, known) if known else "; it has none: load one first."
            raise ConfigError(f"The pipeline has no HRA adapter named {name!r}{others}")
    return {
        component_name: component
        for component_name, component in components.items()
        if any(name in component.peft_config for name in adapter_names)
    }


def uncompiled(model: nn.Module) -> nn.Module:
    """Return a model without the wrapper of `torch.compile`."""
    return getattr(model, "_orig_mod", model)


def lock_of(pipe: Pipeline) -> Any:
    """Return the lock of a pipeline's denoiser; pipelines with the same denoiser have the same lock."""
    with _creating_lock:
        return _locks.setdefault(shared_model(pipe), threading.RLock())


def shared_model(pipe: Pipeline) -> nn.Module:
    """Return the bare denoiser of a pipeline, or else its first model: pipelines with the same one share its state."""
    present = models(pipe)
    return bare_model(present.get(denoiser_name(pipe), next(iter(present.values()))))


@contextmanager
def offloading_suspended(pipe: Pipeline) -> Iterator[None]:
    """Suspend the offloading of a pipeline's models or layers within a ``with`` block, so that all tensors are loaded.

    Blocks of other threads wait, and so do calls within `using_hra_adapters`: no image sees half a change.
    """
    with lock_of(pipe):
        _check_no_disk_offloading(pipe)
        offload = _offloading_method(pipe)
        if offload is None:
            yield
            return
        pipe.remove_all_hooks()
        try:
            yield
        finally:
            offload(device=pipe._offload_device)


def _check_no_disk_offloading(pipe: Pipeline) -> None:
    """Refuse adaptable models with groups of layers on a disk: their tensors in memory are empty."""
    for name, model in models(pipe).items():
        adaptable = name == denoiser_name(pipe) or name.startswith("text_encoder")
        for module in model.modules() if adaptable else ():
            registry: Any = getattr(module, "_diffusers_hook", None)
            hook = registry.get_hook("group_offloading") if registry is not None else None
            if getattr(getattr(hook, "group", None), "offload_to_disk_path", None):
                raise ConfigError(
                    f"The pipeline's {name} offloads groups of layers to a disk, where adapters cannot be reached: "
                    "prepare them first, and offload then."
                )


def _offloading_method(pipe: Pipeline) -> Callable[..., None] | None:
    """Return the method of a pipeline that switched its offloading on, if any."""
    if getattr(pipe, "_all_hooks", None):
        return pipe.enable_model_cpu_offload
    if getattr(pipe, "_offload_device", None) and any(hasattr(model, "_hf_hook") for model in models(pipe).values()):
        return pipe.enable_sequential_cpu_offload
    return None
