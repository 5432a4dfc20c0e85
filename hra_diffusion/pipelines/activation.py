"""Which adapters of a pipeline act, how strongly, and whether through the weights: in all components alike, or none."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from hra_diffusion.errors import ConfigError
from hra_diffusion.pipelines.components import adapted_components, holders, lock_of, offloading_suspended


@dataclass(frozen=True, kw_only=True)
class LoadedAdapter:
    """An adapter in a pipeline.

    Attributes:
        components: names of the components it is in.
        rank: its number of reflections a layer.
        strength: its place on the geodesic from the base model, 0, to the adapter, 1, and beyond.
        active: whether it acts.
        fused: whether it is multiplied into the weights.
        base_model: the model it was made for, if it says so.
    """

    components: tuple[str, ...]
    rank: int
    strength: float
    active: bool
    fused: bool
    base_model: str | None


def list_hra_adapters(pipe: Any) -> dict[str, LoadedAdapter]:
    """Return the adapters of a pipeline by name, in the order they were loaded in."""
    components = adapted_components(pipe)
    names = dict.fromkeys(name for component in components.values() for name in component.peft_config)
    return {name: _describe(name, holders(pipe, name)) for name in names}


def set_hra_adapters(
    pipe: Any,
    names: str | Sequence[str],
    strengths: float | Sequence[float] = 1.0,
    combine: Literal["lie", "product"] = "lie",
) -> None:
    """Let adapters act; the others rest.

    Args:
        pipe: the pipeline.
        names: one or several adapters, or none for the base model.
        strengths: one number for all, or one for each: 0 is the base model, 1 the adapter, 0.5 the middle of the
            geodesic between them; negative ones turn the other way. Biases and modules trained whole act at any.
        combine: "lie" for exp(Σ sᵢ log Hᵢ), which has no order; "product" for H_first ⋯ H_last, each with its strength.

    Raises:
        ConfigError: there is no such adapter, or a strength or mean cannot be had; the pipeline is as before.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    each = (strengths,) * len(names) if isinstance(strengths, Real | str) else tuple(strengths)
    if any(not isinstance(strength, Real) for strength in each):
        raise ConfigError(f"A strength is a number; found {', '.join(map(repr, each))}.")
    each = tuple(map(float, each))
    if len(each) != len(names) or len(set(names)) != len(names):
        raise ConfigError(f"Each adapter needs one strength; found {len(names)} names, {len(each)} strengths.")
    holders(pipe, *names)
    with offloading_suspended(pipe), ExitStack() as undo:
        for component in adapted_components(pipe).values():
            here = [index for index, name in enumerate(names) if name in component.peft_config]
            undo.callback(component.restorer())
            component.set_adapters([names[i] for i in here], [each[i] for i in here], combine)
        undo.pop_all()


@contextmanager
def using_hra_adapters(
    pipe: Any,
    names: str | Sequence[str],
    strengths: float | Sequence[float] = 1.0,
    combine: Literal["lie", "product"] = "lie",
) -> Iterator[None]:
    """Let adapters act within a ``with`` block: the strength of a single call. The arguments are `set_hra_adapters`'s.

    Blocks of other threads wait until this one is done, so that one pipeline can serve many.

    >>> with using_hra_adapters(pipe, "tiger", 0.7):
    ...     pipe("a photo of a sks tiger")
    """
    with lock_of(pipe):
        restore = [component.restorer() for component in adapted_components(pipe).values()]
        try:
            with offloading_suspended(pipe):
                for component in adapted_components(pipe).values():
                    component.unmerge_adapter()
                set_hra_adapters(pipe, names, strengths, combine)
            yield
        finally:
            with offloading_suspended(pipe):
                for each in restore:
                    each()


@contextmanager
def disable_hra(pipe: Any) -> Iterator[None]:
    """Let a pipeline act as its base model within a ``with`` block, which ends in the thread that it began in.

    Blocks of other threads wait until this one is done, as with `using_hra_adapters`.
    """
    with lock_of(pipe):
        components = adapted_components(pipe).values()
        restore = [component.restorer() for component in components]
        plain = all(component.is_plain for component in components)
        at_hand = nullcontext if plain else offloading_suspended  # switching alone needs no tensors
        try:
            with at_hand(pipe):
                for component in components:
                    component.disable_adapter_layers()
            yield
        finally:
            with at_hand(pipe):
                for each in restore:
                    each()


def fuse_hra(pipe: Any, names: str | Sequence[str] | None = None, safe_fusing: bool = False) -> None:
    """Multiply adapters into the weights: an image then costs what the base model's does.

    Args:
        pipe: the pipeline.
        names: one adapter, or the ordered product of several, at their strengths; what acts at present when left out.
        safe_fusing: check first that every weight will be finite.

    Raises:
        ConfigError: there is no such adapter.
        MergeError: a weight is quantized, or (safe_fusing) would not be finite; the pipeline is as before.
    """
    names = (names,) if isinstance(names, str) else names
    holders(pipe, *names or ())
    with offloading_suspended(pipe), ExitStack() as undo:
        for component in adapted_components(pipe).values():
            undo.callback(component.restorer())
            here = None if names is None else [name for name in names if name in component.peft_config]
            component.merge_adapter(here, safe_merge=safe_fusing)
        undo.pop_all()


def unfuse_hra(pipe: Any) -> None:
    """Put the original weights back, bit by bit; the adapters act beside them again."""
    with offloading_suspended(pipe):
        for component in adapted_components(pipe).values():
            component.unmerge_adapter()


def _describe(name: str, components: Any) -> LoadedAdapter:
    first = next(iter(components.values()))
    return LoadedAdapter(
        components=tuple(components),
        rank=max(component.peft_config[name].r for component in components.values()),
        strength=first.strengths[name],
        active=name in first.active_adapters,
        fused=name in first.merged_adapters,
        base_model=first.peft_config[name].base_model_name_or_path,
    )
