"""The active adapters of a pipeline, their strengths and fusing: a change reaches all components or none."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any

from hra_diffusion.adapter.mixture import Combine
from hra_diffusion.errors import ConfigError
from hra_diffusion.model import HRAModel
from hra_diffusion.pipelines.components import adapted_components, holders, lock_of, offloading_suspended
from hra_diffusion.pipelines.protocol import Pipeline


@dataclass(frozen=True, kw_only=True)
class LoadedAdapter:
    """An adapter in a pipeline.

    Attributes:
        components: names of its components.
        rank: its number of reflections a layer.
        strength: its position on the geodesic from the base model, 0, to the adapter, 1, and beyond.
        active: whether it is active.
        fused: whether it is multiplied into the weights.
        base_model: the model it was made for, where its files name one.
    """

    components: tuple[str, ...]
    rank: int
    strength: float
    active: bool
    fused: bool
    base_model: str | None


def list_hra_adapters(pipe: Pipeline) -> dict[str, LoadedAdapter]:
    """Return the adapters of a pipeline by name, in the order of loading."""
    components = adapted_components(pipe)
    names = dict.fromkeys(name for component in components.values() for name in component.peft_config)
    return {name: _describe(name, holders(pipe, name)) for name in names}


def set_hra_adapters(
    pipe: Pipeline,
    adapter_names: str | Sequence[str],
    strengths: float | Sequence[float] = 1.0,
    combine: Combine = "mean",
) -> None:
    """Activate adapters with their strengths, and deactivate the others.

    Args:
        pipe: the pipeline.
        adapter_names: one or several adapters, or none for the base model.
        strengths: one number for all, or one per adapter: 0 is the base model, 1 the adapter, 0.5 the middle of the
            geodesic between them; negative ones rotate the other way. Biases and fully trained modules apply at any.
        combine: "mean" for exp(Σ sᵢ log Hᵢ), which has no order; "product" for H_first ⋯ H_last, with their strengths.

    Raises:
        ConfigError: an adapter is unknown, or a strength or mean is impossible; the pipeline is unchanged.
    """
    names = (adapter_names,) if isinstance(adapter_names, str) else tuple(adapter_names)
    given: Any = strengths  # type checkers take no float for a Real
    numbers = (given,) * len(names) if isinstance(given, Real | str) else tuple(given)
    if any(not isinstance(number, Real) for number in numbers):
        raise ConfigError(f"A strength is a number; found {', '.join(map(repr, numbers))}.")
    if len(numbers) != len(names) or len(set(names)) != len(names):
        raise ConfigError(f"Every adapter needs one strength; found {len(names)} names, {len(numbers)} strengths.")
    chosen = dict(zip(names, map(float, numbers), strict=True))
    holders(pipe, *names)
    with offloading_suspended(pipe), ExitStack() as undo:
        for component in adapted_components(pipe).values():
            present = [name for name in names if name in component.peft_config]
            undo.callback(component._restorer())
            component.set_adapters(present, [chosen[name] for name in present], combine)
        undo.pop_all()


@contextmanager
def using_hra_adapters(
    pipe: Pipeline,
    adapter_names: str | Sequence[str],
    strengths: float | Sequence[float] = 1.0,
    combine: Combine = "mean",
) -> Iterator[None]:
    """Activate adapters within a ``with`` block; the arguments are those of `set_hra_adapters`.

    Blocks of other threads wait for the end of the block, so that one pipeline can serve many users.

    >>> with using_hra_adapters(pipe, "tiger", 0.7):
    ...     pipe("a photo of a sks tiger")
    """
    with lock_of(pipe):
        restorers = [component._restorer() for component in adapted_components(pipe).values()]
        try:
            with offloading_suspended(pipe):
                for component in adapted_components(pipe).values():
                    component.unmerge_adapter()
                set_hra_adapters(pipe, adapter_names, strengths, combine)
            yield
        finally:
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
        ConfigError: an adapter is unknown.
        MergeError: a weight is quantized, or (safe_fusing) would not be finite; the pipeline is unchanged.
    """
    names = (adapter_names,) if isinstance(adapter_names, str) else adapter_names
    holders(pipe, *names or ())
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


def _describe(name: str, components: Mapping[str, HRAModel]) -> LoadedAdapter:
    first = next(iter(components.values()))
    return LoadedAdapter(
        components=tuple(components),
        rank=max(component.peft_config[name].r for component in components.values()),
        strength=first.strengths[name],
        active=name in first.active_adapters,
        fused=name in first.merged_adapters,
        base_model=first.peft_config[name].base_model_name_or_path,
    )
