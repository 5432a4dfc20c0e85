"""Loading, swapping and unloading adapters of a pipeline: all components of an adapter, or none."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import nn

from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.folders import component_folders, encoder_beside, tokens_beside
from hra_diffusion.formats.hub import check_arguments
from hra_diffusion.formats.peft import fits, read_adapter, read_adapter_for, read_file_metadata
from hra_diffusion.formats.tokens import Tokens
from hra_diffusion.formats.trigger_words import Trigger, trigger_beside
from hra_diffusion.model import HRAModel
from hra_diffusion.pipelines.activation import list_hra_adapters, set_hra_adapters
from hra_diffusion.pipelines.binding import binding_of, forget_adapters, set_trigger, trigger_restorer
from hra_diffusion.pipelines.components import (
    adapted_components,
    bare_model,
    holders,
    models,
    offloading_suspended,
    uncompiled,
)
from hra_diffusion.pipelines.lora_verbs import guard_lora_verbs
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.pipelines.tokens import remove_tokens, set_tokens


def load_hra_weights(
    pipe: Pipeline,
    folder: str | Path,
    adapter_name: str = "default",
    *,
    subfolder: str | None = None,
    hotswap: bool = False,
    max_rank: int | None = None,
    **hub: Any,
) -> None:
    """Load an adapter into a pipeline and make it the only active one.

    All components are loaded, or none. Learned tokens of the adapter can be used in prompts until it is unloaded.

    Args:
        pipe: a diffusers pipeline; its components are replaced by adapted ones.
        folder: the adapter's folder, the output folder of its run, or a repository on the hub.
        adapter_name: a name for the adapter in the pipeline.
        subfolder: the adapter's folder within `folder`.
        hotswap: write it over the adapter of that name, in place: nothing is injected and compiled again.
        max_rank: reserve memory for adapters of up to this number of reflections, to be swapped in later.
        hub: arguments of `huggingface_hub.snapshot_download`: revision, token, cache_dir, …

    Raises:
        AdapterFileError: there is no adapter, or it is damaged or for another model; the pipeline is unchanged.
        ConfigError: it is a control; or the name is taken or invalid, or (hotswap) unknown, or the rank exceeds
            `max_rank`; the pipeline is unchanged.
    """
    check_arguments(load_hra_weights, hub)
    if hotswap and max_rank is not None:
        raise ConfigError("max_rank is for loading an adapter, not for swapping one (hotswap): leave it out.")
    parts = component_folders(folder, subfolder, **hub)
    if encoder_beside(parts):
        raise ConfigError(f"{folder} is a control, which needs its encoder: use load_hra_control (--control).")
    matched, tokens, trigger = matched_to_components(pipe, parts, folder), tokens_beside(parts), trigger_beside(parts)
    with offloading_suspended(pipe):
        if hotswap:
            _swap(pipe, matched, tokens, trigger, adapter_name)
        else:
            _add(pipe, matched, tokens, trigger, adapter_name, max_rank)


def load_hra_weights_inactive(
    pipe: Pipeline, folder: str | Path, adapter_name: str, *, subfolder: str | None = None, **hub: Any
) -> None:
    """Load an adapter, a control's too, without a change of the active ones: see `load_hra_weights`."""
    parts = component_folders(folder, subfolder, **hub)
    with offloading_suspended(pipe):
        matched = matched_to_components(pipe, parts, folder)
        _add(pipe, matched, tokens_beside(parts), trigger_beside(parts), adapter_name, is_active=False)


def name_from_folder(folder: str | Path) -> str:
    """Return an adapter name made of a folder's name, for messages; other characters become spaces."""
    return re.sub("[^A-Za-z0-9_-]+", " ", Path(folder).name)


def unload_hra_weights(pipe: Pipeline, adapter_name: str | None = None) -> None:
    """Remove one adapter, or all, from a pipeline; components without any are the original objects again.

    Fused adapters are unfused. The other active adapters stay active; without any, the first remaining adapter is
    activated.

    Raises:
        ConfigError: the adapter is unknown.
    """
    holders(pipe, *([] if adapter_name is None else [adapter_name]))
    loaded = list_hra_adapters(pipe)
    with offloading_suspended(pipe):
        for name, component in adapted_components(pipe).items():
            _drop(pipe, name, list(component.peft_config) if adapter_name is None else [adapter_name])
        remove_tokens(pipe, adapter_name)
        forget_adapters(pipe, [adapter_name] if adapter_name else list(loaded))
        remaining = list_hra_adapters(pipe)
        for component in adapted_components(pipe).values() if binding_of(pipe) else ():
            component.set_adapter(())  # deleting one has activated another
        if remaining and not any(adapter.active for adapter in remaining.values()):
            set_hra_adapters(pipe, next(iter(remaining)))


def _add(
    pipe: Pipeline,
    parts: dict[str, Path],
    tokens: Tokens,
    trigger: Trigger | None,
    adapter_name: str,
    max_rank: int | None = None,
    is_active: bool = True,
) -> None:
    if adapter_name in list_hra_adapters(pipe):
        raise ConfigError(
            f"There is an HRA adapter named {adapter_name!r} already: choose another adapter_name, unload it, or swap "
            "this one for it with hotswap=True."
        )
    guard_lora_verbs(type(pipe))
    restorers = {name: component._restorer() for name, component in adapted_components(pipe).items()}
    with ExitStack() as undo:
        for restore in restorers.values():
            undo.callback(restore)
        for name, part in parts.items():
            adapted = adapted_components(pipe)
            present = getattr(pipe, name)
            model = HRAModel.from_pretrained(adapted.get(name) or bare_model(present), part, adapter_name)
            if name not in adapted:
                model.register_forward_pre_hook(_refuse_scale, with_kwargs=True)
            if uncompiled(present) is not model:
                setattr(pipe, name, model)
            undo.callback(_drop, pipe, name, [adapter_name])
            if max_rank is not None:
                model.pad_adapter(max_rank, adapter_name)
        set_tokens(pipe, adapter_name, tokens)
        undo.callback(remove_tokens, pipe, adapter_name)
        if is_active:
            set_hra_adapters(pipe, adapter_name)
        for name in () if is_active else parts:
            restorers[name]() if name in restorers else adapted_components(pipe)[name].set_adapter(())
        set_trigger(pipe, adapter_name, trigger)
        undo.pop_all()


def _swap(pipe: Pipeline, parts: dict[str, Path], tokens: Tokens, trigger: Trigger | None, adapter_name: str) -> None:
    components = holders(pipe, adapter_name)
    if missing := sorted(parts.keys() - components.keys()):
        raise AdapterFileError(
            f"The adapter cannot be swapped for {adapter_name!r}, which is not in {', '.join(missing)}: load it under "
            "another name."
        )
    with ExitStack() as undo:
        for name, component in components.items():
            config, before = component.peft_config[adapter_name], component.adapter_state_dict(adapter_name)
            new = read_adapter_for(component, parts[name]) if name in parts else (config, {})
            component.swap_adapter(*new, adapter_name)
            undo.callback(component.swap_adapter, *before, adapter_name)
            metadata = component.file_metadata
            undo.callback(metadata.update, {adapter_name: metadata.get(adapter_name, {})})
            metadata[adapter_name] = read_file_metadata(parts[name]) if name in parts else {}
        undo.callback(trigger_restorer(pipe))
        set_trigger(pipe, adapter_name, trigger)
        set_tokens(pipe, adapter_name, tokens)
        undo.pop_all()


def _drop(pipe: Pipeline, name: str, adapter_names: list[str]) -> None:
    """Remove adapters from one component."""
    component = adapted_components(pipe)[name]
    component.unmerge_adapter()
    for adapter_name in set(adapter_names) & component.peft_config.keys():
        component.delete_adapter(adapter_name)
    if not component.peft_config:
        setattr(pipe, name, component.unload())


def matched_to_components(pipe: Pipeline, parts: dict[str, Path], folder: str | Path) -> dict[str, Path]:
    """Check that the pipeline has an adapter's components; files without a component get the only matching one."""
    present = models(pipe)
    known = present | adapted_components(pipe)
    if "" in parts:
        _, tensors = read_adapter(parts[""])
        parts = {name: parts[""] for name, model in known.items() if fits(model, tensors)}
        if len(parts) != 1:
            raise AdapterFileError(
                f"The adapter {folder} fits {', '.join(parts) or 'no component'} of the {type(pipe).__name__}: put its "
                "files into a sub-folder named after its component, such as unet."
            )
    for name in parts:
        if name not in present:
            raise AdapterFileError(
                f"The adapter {folder} is for {', '.join(parts)}, but the {type(pipe).__name__} has no {name}: "
                "load it into the kind of pipeline it was trained for."
            )
        model = uncompiled(present[name])
        if model is not present[name] and not isinstance(model, HRAModel):
            raise AdapterFileError(f"The pipeline's {name} is compiled: load the adapter first, then compile it.")
    return parts


def _refuse_scale(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """Refuse diffusers' scale of LoRAs in a model without LoRAs, since text encoders would never get the scale."""
    if getattr(model, "_hf_peft_config_loaded", False):
        return
    for name in ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"):
        if "scale" in (kwargs.get(name) or {}):
            raise ConfigError(
                f"The scale in {name} is that of LoRAs: for HRA, call the pipeline within "
                "`with using_hra_adapters(pipe, name, strength):`."
            )
