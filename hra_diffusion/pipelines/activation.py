"""The active adapters of a pipeline, their strengths and fusing: a change reaches all components or none."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, get_args

from hra_diffusion.adapter.activation import check_strength
from hra_diffusion.adapter.mixture import Combine
from hra_diffusion.errors import ConfigError
from hra_diffusion.model import HRAModel
from hra_diffusion.pipelines.binding import Bind, Binding, Triggers, binding_of, make_binding, set_binding
from hra_diffusion.pipelines.components import adapted_components, holders, lock_of, offloading_suspended
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.pipelines.regions import RegionMask
from hra_diffusion.pipelines.strengths import ComponentStrengths, StrengthTable, read_strengths, simplest


@dataclass(frozen=True, kw_only=True)
class LoadedAdapter:
    """An adapter in a pipeline.

    Attributes:
        components: names of its components.
        rank: its number of reflections a layer.
        strength: its position on the geodesic from the base model, 0, to the adapter, 1, and beyond; a table if it
            differs between components or blocks.
        active: whether it is active.
        bound: what it is bound to, see `set_hra_adapters`.
        fused: whether it is multiplied into the weights.
        base_model: the model it was made for, where its files name one.
    """

    components: tuple[str, ...]
    rank: int
    strength: float | StrengthTable
    active: bool
    bound: Bind | None = None
    fused: bool
    base_model: str | None


def list_hra_adapters(pipe: Pipeline) -> dict[str, LoadedAdapter]:
    """Return the adapters of a pipeline by name, in the order of loading."""
    components = adapted_components(pipe)
    names = dict.fromkeys(name for component in components.values() for name in component.peft_config)
    binding = binding_of(pipe)
    return {name: _describe(name, holders(pipe, name), binding) for name in names}


def set_hra_adapters(
    pipe: Pipeline,
    adapter_names: str | Sequence[str],
    strengths: float | StrengthTable | Sequence[float | StrengthTable] = 1.0,
    combine: Combine = "mean",
    *,
    bind: Bind | None = None,
    triggers: Triggers | None = None,
    masks: Mapping[str, RegionMask] | None = None,
    prompts: Mapping[str, str] | None = None,
) -> None:
    """Activate adapters with their strengths, and deactivate the others.

    Args:
        pipe: the pipeline.
        adapter_names: one or several adapters, or none for the base model.
        strengths: one number for all, or one per adapter: 0 is the base model, 1 the adapter, 0.5 the middle of the
            geodesic between them; negative ones rotate the other way. Biases and fully trained modules apply at any.
            A table has other strengths for components and blocks, as in diffusers' `set_adapters`: see `strengths`.
        combine: "mean" for exp(Σ sᵢ log Hᵢ), which has no order; "product" for H_first ⋯ H_last, with their strengths.
        bind: "prompt" for adapters that are active only for prompts that hold their trigger word; "tokens" for those
            tokens alone, in text encoders and cross-attention; "region" for these and the image inside of a mask.
        masks: the region of each adapter, for "region": an image, white inside, or values (height, width) from 0 to 1;
            by default the cross-attention to its words makes it, see `attention_masks`.
        prompts: a prompt for the region of each adapter with a mask, see `region_prompts`; by default regions read the
            call's prompt.
        triggers: the trigger words of bound adapters, one or several each; by default those of their files.

    Raises:
        ConfigError: an adapter is unknown, or a strength or mean is impossible, or a bound adapter has no trigger word
            of its own; the pipeline is unchanged.
    """
    names = (adapter_names,) if isinstance(adapter_names, str) else tuple(adapter_names)
    holders(pipe, *names)
    chosen = read_strengths(pipe, names, strengths)
    _check_bind(pipe, chosen, bind, triggers or masks or prompts)
    binding = None if bind is None else make_binding(pipe, bind, chosen, combine, triggers, masks, prompts)
    with offloading_suspended(pipe), ExitStack() as undo:
        for component_name, component in adapted_components(pipe).items():
            present = [name for name in names if name in component.peft_config and binding is None]
            undo.callback(component._restorer())
            component.set_adapters(present, [chosen[name][component_name] for name in present], combine)
        set_binding(pipe, binding)
        undo.pop_all()


def _check_bind(
    pipe: Pipeline, chosen: Mapping[str, ComponentStrengths], bind: Bind | None, options: Mapping[str, Any] | None
) -> None:
    """Raise ConfigError for an unknown binding, or for strengths that a bound adapter cannot have."""
    if bind not in (None, *get_args(Bind)):
        raise ConfigError(f"bind is {bind!r}: give {' or '.join(map(repr, get_args(Bind)))}, or None.")
    if options and bind is None:
        raise ConfigError("triggers, masks and prompts are for bound adapters: add bind='prompt', or 'region'.")
    for component_name, component in adapted_components(pipe).items() if bind else ():
        for name in chosen.keys() & component.peft_config.keys():
            check_strength(name, chosen[name][component_name], component.peft_config[name])


@contextmanager
def using_hra_adapters(
    pipe: Pipeline,
    adapter_names: str | Sequence[str],
    strengths: float | StrengthTable | Sequence[float | StrengthTable] = 1.0,
    combine: Combine = "mean",
    *,
    bind: Bind | None = None,
    triggers: Triggers | None = None,
    masks: Mapping[str, RegionMask] | None = None,
    prompts: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Activate adapters within a ``with`` block; the arguments are those of `set_hra_adapters`.

    Blocks of other threads wait for the end of the block, so that one pipeline can serve many users.

    >>> with using_hra_adapters(pipe, "tiger", 0.7):
    ...     pipe("a photo of a sks tiger")
    """
    with lock_of(pipe):
        restorers = [component._restorer() for component in adapted_components(pipe).values()]
        binding = binding_of(pipe)
        try:
            with offloading_suspended(pipe):
                for component in adapted_components(pipe).values():
                    component.unmerge_adapter()
                set_hra_adapters(
                    pipe,
                    adapter_names,
                    strengths,
                    combine,
                    bind=bind,
                    triggers=triggers,
                    masks=masks,
                    prompts=prompts,
                )
            yield
        finally:
            set_binding(pipe, binding)
            with offloading_suspended(pipe):
                for restore in restorers:
                    restore()


@contextmanager
def disable_hra(pipe: Pipeline) -> Iterator[None]:
    """Use a pipeline as its base model within a ``with`` block.

    The block has to end in the thread of its beginning. Blocks of other threads wait, as with `using_hra_adapters`.
    """
    with lock_of(pipe):
        components = adapted_components(pipe).values()
        restorers = [component._restorer() for component in components]
        is_plain = all(component._is_plain for component in components)
        access = nullcontext if is_plain else offloading_suspended  # deactivating alone needs no tensors
        try:
            with access(pipe):
                for component in components:
                    component.disable_adapter_layers()
            yield
        finally:
            with access(pipe):
                for restore in restorers:
                    restore()


def fuse_hra(pipe: Pipeline, adapter_names: str | Sequence[str] | None = None, safe_fusing: bool = False) -> None:
    """Multiply adapters into the weights: an image then costs as much as one of the base model.

    Args:
        pipe: the pipeline.
        adapter_names: one adapter, or the ordered product of several, at their strengths; the active ones by default.
        safe_fusing: check first that every weight will be finite.

    Raises:
        ConfigError: an adapter is unknown, or bound.
        MergeError: a weight is quantized, or (safe_fusing) would not be finite; the pipeline is unchanged.
    """
    names = (adapter_names,) if isinstance(adapter_names, str) else adapter_names
    holders(pipe, *names or ())
    if binding_of(pipe) is not None:
        raise ConfigError("Adapters bound to prompts are no single weight: set them without bind before fuse_hra.")
    with offloading_suspended(pipe), ExitStack() as undo:
        for component in adapted_components(pipe).values():
            undo.callback(component._restorer())
            present = None if names is None else [name for name in names if name in component.peft_config]
            component.merge_adapter(present, safe_merge=safe_fusing)
        undo.pop_all()


def unfuse_hra(pipe: Pipeline) -> None:
    """Restore the original weights bit by bit; active adapters are applied beside them again."""
    with offloading_suspended(pipe):
        for component in adapted_components(pipe).values():
            component.unmerge_adapter()


def _describe(name: str, components: Mapping[str, HRAModel], binding: Binding | None) -> LoadedAdapter:
    first = next(iter(components.values()))
    active = {component_name: component.strengths[name] for component_name, component in components.items()}
    bound = None if binding is None else binding.strengths.get(name)
    return LoadedAdapter(
        components=tuple(components),
        rank=max(component.peft_config[name].largest_rank for component in components.values()),
        strength=simplest(active if bound is None else bound),
        active=name in first.active_adapters or bound is not None,
        bound=None if binding is None or bound is None else binding.bind,
        fused=name in first.merged_adapters,
        base_model=first.peft_config[name].base_model_name_or_path,
    )
