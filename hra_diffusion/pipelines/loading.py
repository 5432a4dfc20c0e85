"""Adapters come into a pipeline, over one another, and out again: all of an adapter's components, or none."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from hra_diffusion.adapter import HRAModel
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.folders import component_folders, encoder_beside, tokens_beside
from hra_diffusion.formats.peft import fits, load_adapter, read_adapter, read_for
from hra_diffusion.formats.tokens import Tokens
from hra_diffusion.pipelines.activation import list_hra_adapters, set_hra_adapters
from hra_diffusion.pipelines.components import adapted_components, holders, models, offloading_suspended
from hra_diffusion.pipelines.tokens import remove_tokens, set_tokens


def load_hra_weights(
    pipe: Any,
    folder: str | Path,
    adapter_name: str = "default",
    *,
    subfolder: str | None = None,
    hotswap: bool = False,
    max_rank: int | None = None,
    **hub: Any,
) -> None:
    """Load an adapter into the components of a pipeline it was made for, all of them or none; it acts, alone.

    Tokens that were learned with it can then be written in prompts, until it is unloaded.

    Args:
        pipe: a diffusers pipeline; its components are replaced by adapted ones.
        folder: the adapter's folder, the output folder of the run that made it, or a repository on the hub.
        adapter_name: what the adapter is to be called.
        subfolder: where in `folder` the adapter is.
        hotswap: write it over the adapter of that name, in place: nothing is injected and compiled again.
        max_rank: make room for adapters of up to so many reflections, to be swapped in later.
        hub: what `huggingface_hub.snapshot_download` takes: revision, token, cache_dir, …

    Raises:
        AdapterFileError: there is no adapter, or a damaged one, or one for another model; the pipeline is as before.
        ConfigError: it is a control; or the name is taken or cannot be used, or (hotswap) not there, or the rank
            exceeds `max_rank`; the pipeline is as before.
    """
    if hotswap and max_rank is not None:
        raise ConfigError("max_rank makes room when an adapter is loaded, not when one is swapped: leave it out.")
    found = component_folders(folder, subfolder, **hub)
    if encoder_beside(found):
        raise ConfigError(f"{folder} is a control, which acts only with its encoder: use load_hra_control (--control).")
    parts, tokens = _for_components(pipe, found, folder), tokens_beside(found)
    with offloading_suspended(pipe):
        if hotswap:
            _swap(pipe, parts, tokens, adapter_name)
        else:
            _add(pipe, parts, tokens, adapter_name, max_rank)


def load_hra_weights_inactive(
    pipe: Any, folder: str | Path, adapter_name: str, *, subfolder: str | None = None, **hub: Any
) -> None:
    """Load an adapter, a control's too, that rests at first, while what acts goes on acting: see `load_hra_weights`."""
    found = component_folders(folder, subfolder, **hub)
    with offloading_suspended(pipe):
        _add(pipe, _for_components(pipe, found, folder), tokens_beside(found), adapter_name, resting=True)


def name_after(folder: str | Path) -> str:
    """Return a name for an adapter that errors can speak of: its folder's, in characters that a name may have."""
    return re.sub("[^A-Za-z0-9_-]+", " ", Path(folder).name)


def unload_hra_weights(pipe: Any, adapter_name: str | None = None) -> None:
    """Take one adapter, or all, out of a pipeline; components without any are the same objects as before they came.

    What is fused is unfused. If the adapter acted, the others that did go on; if it acted alone, the first of those
    that are left acts.

    Raises:
        ConfigError: there is no such adapter.
    """
    holders(pipe, *([] if adapter_name is None else [adapter_name]))
    with offloading_suspended(pipe):
        for name, component in adapted_components(pipe).items():
            _drop(pipe, name, list(component.peft_config) if adapter_name is None else [adapter_name])
        remove_tokens(pipe, adapter_name)
        left = list_hra_adapters(pipe)
        if left and not any(adapter.active for adapter in left.values()):
            set_hra_adapters(pipe, next(iter(left)))


def _add(
    pipe: Any,
    parts: dict[str, Path],
    tokens: Tokens,
    adapter_name: str,
    max_rank: int | None = None,
    resting: bool = False,
) -> None:
    if adapter_name in list_hra_adapters(pipe):
        raise ConfigError(
            f"There is an HRA adapter named {adapter_name!r} already: choose another adapter_name, unload it, or swap "
            "this one for it with hotswap=True."
        )
    restore = {name: component.restorer() for name, component in adapted_components(pipe).items()}
    with ExitStack() as undo:
        for each in restore.values():
            undo.callback(each)
        for name, part in parts.items():
            adapted = adapted_components(pipe)
            model = load_adapter(adapted.get(name, getattr(pipe, name)), part, adapter_name)
            if name not in adapted:
                model.register_forward_pre_hook(_refuse_scale, with_kwargs=True)
                setattr(pipe, name, model)
            undo.callback(_drop, pipe, name, [adapter_name])
            if max_rank is not None:
                model.pad_adapter(max_rank, adapter_name)
        set_tokens(pipe, adapter_name, tokens)
        undo.callback(remove_tokens, pipe, adapter_name)
        if not resting:
            set_hra_adapters(pipe, adapter_name)
        for name in parts if resting else ():
            restore[name]() if name in restore else adapted_components(pipe)[name].set_adapter(())
        undo.pop_all()


def _swap(pipe: Any, parts: dict[str, Path], tokens: Tokens, adapter_name: str) -> None:
    components = holders(pipe, adapter_name)
    if missing := sorted(parts.keys() - components.keys()):
        raise AdapterFileError(
            f"The adapter cannot be swapped for {adapter_name!r}, which is not in {', '.join(missing)}: load it as an "
            "adapter of its own."
        )
    with ExitStack() as undo:
        for name, component in components.items():
            config, before = component.peft_config[adapter_name], component.adapter_state_dict(adapter_name)
            new = read_for(component, parts[name]) if name in parts else (config, {})
            component.swap_adapter(*new, adapter_name)
            undo.callback(component.swap_adapter, *before, adapter_name)
        set_tokens(pipe, adapter_name, tokens)
        undo.pop_all()


def _drop(pipe: Any, name: str, adapter_names: list[str]) -> None:
    """Take adapters out of one component."""
    component = adapted_components(pipe)[name]
    component.unmerge_adapter()
    for adapter_name in set(adapter_names) & component.peft_config.keys():
        component.delete_adapter(adapter_name)
    if not component.peft_config:
        setattr(pipe, name, component.unload())


def _for_components(pipe: Any, parts: dict[str, Path], folder: str | Path) -> dict[str, Path]:
    """Check that the pipeline has what an adapter is for, and find out what that is where its folder does not say."""
    present = models(pipe)
    if "" in parts:
        _, tensors = read_adapter(parts[""])
        parts = {name: parts[""] for name, model in present.items() if fits(model, tensors)}
        if len(parts) != 1:
            raise AdapterFileError(
                f"The adapter {folder} fits {', '.join(parts) or 'no component'} of the {type(pipe).__name__}: put its "
                "files into a sub-folder named after the component it is for, such as unet."
            )
    for name in parts:
        if name not in present:
            raise AdapterFileError(
                f"The adapter {folder} is for {', '.join(parts)}, but the {type(pipe).__name__} has no {name}: "
                "load it into the kind of pipeline it was trained for."
            )
        if hasattr(present[name], "_orig_mod") and not isinstance(present[name]._orig_mod, HRAModel):
            raise AdapterFileError(f"The pipeline's {name} is compiled: load the adapter first, then compile it.")
    return parts


def _refuse_scale(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """Refuse diffusers' scale of LoRAs where there are none, rather than ignore it: text encoders never hear of it."""
    if getattr(model, "_hf_peft_config_loaded", False):
        return
    for name in ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"):
        if "scale" in (kwargs.get(name) or {}):
            raise ConfigError(
                f"The scale in {name} is that of LoRAs: for HRA, call the pipeline within "
                "`with using_hra_adapters(pipe, name, strength):`."
            )
