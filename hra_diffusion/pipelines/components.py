"""The parts of a pipeline that hold adapters, and how these get at their tensors while a pipeline offloads them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from hra_diffusion.adapter import HRAModel
from hra_diffusion.errors import ConfigError

_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_making_locks = threading.Lock()


def adapted_components(pipe: Any) -> dict[str, HRAModel]:
    """Return the components of a pipeline that hold HRA adapters, by name."""
    found = {name: getattr(each, "_orig_mod", each) for name, each in models(pipe).items()}
    return {name: each for name, each in found.items() if isinstance(each, HRAModel)}


def denoiser_name(pipe: Any) -> str:
    """Return the name of the component that denoises: unet or transformer."""
    return "unet" if "unet" in pipe.components else "transformer"


def tokenizer_name(text_encoder: str) -> str:
    """Return the name of a text encoder's tokenizer, which has the same number."""
    return text_encoder.replace("text_encoder", "tokenizer")


def tokenizer_of(pipe: Any, text_encoder: str) -> Any:
    """Return a text encoder's tokenizer."""
    return getattr(pipe, tokenizer_name(text_encoder))


def size_multiple(pipe: Any) -> int:
    """Return of what the sides of a pipeline's images are multiples, in pixels."""
    return pipe.vae_scale_factor * (getattr(pipe, denoiser_name(pipe)).config.get("patch_size") or 1)


def default_size(pipe: Any) -> int | None:
    """Return the side of the squares that a pipeline was made for, in pixels, if its model says so."""
    size = getattr(pipe, denoiser_name(pipe)).config.sample_size
    return size and size * pipe.vae_scale_factor


def models(pipe: Any) -> dict[str, nn.Module]:
    """Return the components of a pipeline that are models, by name."""
    return {name: each for name, each in pipe.components.items() if isinstance(each, nn.Module)}


def module_names(pipe: Any) -> list[tuple[str, str]]:
    """Return component and name of every module of a pipeline's models, whether or not they hold adapters."""
    bare = {name: each.model for name, each in adapted_components(pipe).items()}
    return [(name, module) for name, each in (models(pipe) | bare).items() for module, _ in each.named_modules()]


def holders(pipe: Any, *adapter_names: str) -> dict[str, HRAModel]:
    """Return the components that hold one of the adapters, by name.

    Raises:
        ConfigError: no component holds an adapter of such a name.
    """
    components = adapted_components(pipe)
    known = list(dict.fromkeys(name for component in components.values() for name in component.peft_config))
    for name in adapter_names:
        if name not in known:
            there = ", ".join(map(repr, known)) or "none"
            raise ConfigError(f"The pipeline has no HRA adapter named {name!r}; known are: {there}.")
    return {n: each for n, each in components.items() if any(name in each.peft_config for name in adapter_names)}


def lock_of(pipe: Any) -> Any:
    """Return the lock of a pipeline's denoiser, which pipelines that share it share, too."""
    present = models(pipe)
    denoiser = present.get(denoiser_name(pipe), next(iter(present.values())))
    denoiser = getattr(denoiser, "_orig_mod", denoiser)
    with _making_locks:
        return _locks.setdefault(denoiser.model if isinstance(denoiser, HRAModel) else denoiser, threading.RLock())


@contextmanager
def offloading_suspended(pipe: Any) -> Iterator[None]:
    """Have all tensors of a pipeline at hand within a ``with`` block, whether or not it offloads models or layers.

    Blocks of other threads wait, and so do their drawings within `using_hra_adapters`: what a block changes is whole.
    """
    with lock_of(pipe):
        _check_loaded(pipe)
        offload = _offloading(pipe)
        if offload is None:
            yield
            return
        pipe.remove_all_hooks()
        try:
            yield
        finally:
            offload(device=pipe._offload_device)


def _check_loaded(pipe: Any) -> None:
    """Make sure that no tensors of adapters, or of what they adapt, are on a disk: ones without values stand there."""
    for name, model in models(pipe).items():
        adaptable = name == denoiser_name(pipe) or name.startswith("text_encoder")
        for module in model.modules() if adaptable else ():
            hook = module._diffusers_hook.get_hook("group_offloading") if hasattr(module, "_diffusers_hook") else None
            if getattr(getattr(hook, "group", None), "offload_to_disk_path", None):
                raise ConfigError(
                    f"The pipeline's {name} offloads groups of layers to a disk, where adapters cannot be reached: "
                    "prepare them first, and offload then."
                )


def _offloading(pipe: Any) -> Any:
    """Return the pipeline's method that switched offloading on, if any."""
    if getattr(pipe, "_all_hooks", None):
        return pipe.enable_model_cpu_offload
    if getattr(pipe, "_offload_device", None) and any(hasattr(each, "_hf_hook") for each in models(pipe).values()):
        return pipe.enable_sequential_cpu_offload
    return None
