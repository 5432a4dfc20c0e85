"""Strengths of adapters in a pipeline: a number, or other ones for its components and their blocks.

A table of strengths has the form of diffusers' `set_adapters`, and the same defaults: what it leaves out has 1.

    {"unet": {"down": 0.5, "mid": 1.0, "up": {"block_0": 0.3, "block_1": [0, 0.5, 1]}}, "text_encoder": 0.8}

A number is for all layers of a component or block. A list in a block has one number for each of its attentions, and for
the resnet beside it; the up- or downsampler after them has the last one. diffusers scales attentions alone.

In all components, dotted names of modules are keys, too; a list has one number for each block of a module list:

    {"transformer": {"transformer_blocks": {"block_0": 0.5}, "single_transformer_blocks.3": 0}}
"""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

from torch import nn

from hra_diffusion.adapter.strengths import DEFAULT, LayerStrengths, Strength, layer_strengths
from hra_diffusion.errors import ConfigError
from hra_diffusion.model import HRAModel
from hra_diffusion.pipelines.components import holders
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.text import shorten

StrengthTable = Mapping[str, Any]
"""Strengths by component and block, in diffusers' form."""

ComponentStrengths = Mapping[str, Strength]
"""The strength of an adapter in each of its components."""

_UNET_BLOCKS = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}


def read_strengths(
    pipe: Pipeline, adapter_names: Sequence[str], strengths: float | StrengthTable | Sequence[float | StrengthTable]
) -> dict[str, dict[str, Strength]]:
    """Return the strengths of adapters in each of their components.

    Args:
        pipe: the pipeline with the adapters.
        adapter_names: the adapters.
        strengths: one number or table for all, or one for each.

    Raises:
        ConfigError: an adapter is unknown, a strength is no number, or a table names what the model does not have.
    """
    names, given = list(adapter_names), strengths
    values: list[Any] = [given] * len(names) if isinstance(given, Real | str | Mapping) else list(given)  # pyright: ignore[reportArgumentType, reportUnknownArgumentType]
    if any(not isinstance(value, Real | Mapping) for value in values):
        raise ConfigError(f"A strength is a number, or a table of numbers; found {', '.join(map(repr, values))}.")
    if len(values) != len(names) or len(set(names)) != len(names):
        raise ConfigError(f"Every adapter needs one strength; found {len(names)} names, {len(values)} strengths.")
    return {name: _by_component(pipe, name, value) for name, value in zip(names, values, strict=True)}


def simplest(strengths: ComponentStrengths) -> float | dict[str, Any]:
    """Return the strengths of an adapter as a number if they are the same everywhere, else as a table."""
    if len(set(strengths.values())) == 1:
        (strength,) = set(strengths.values())
        if not isinstance(strength, LayerStrengths):
            return strength
    return {
        name: dict(strength.by_module) if isinstance(strength, LayerStrengths) else strength
        for name, strength in strengths.items()
    }


def _by_component(pipe: Pipeline, adapter_name: str, given: float | StrengthTable) -> dict[str, Strength]:
    components = holders(pipe, adapter_name)
    if not isinstance(given, Mapping):
        return dict.fromkeys(components, float(given))
    if unknown := [str(name) for name in given if name not in components]:
        raise ConfigError(
            f"The strengths of {adapter_name!r} name {shorten(unknown)}, which it does not adapt: give those of "
            f"{shorten(components)}."
        )
    return {
        name: _in_component(name, model, given[name]) if name in given else DEFAULT
        for name, model in components.items()
    }


def _in_component(name: str, model: HRAModel, given: Any) -> Strength:
    if not isinstance(given, Mapping):
        return _number(name, given)
    strengths: dict[str, float] = {}
    for key, value in ((str(key), value) for key, value in given.items()):
        module_name = _UNET_BLOCKS.get(key, key) if hasattr(model.model, "up_blocks") else key
        module = _submodule(model.model, module_name)
        if not key or module is None:
            raise ConfigError(f"The strengths of the {name} name {key!r}: give numbers for {shorten(_keys(model))}.")
        strengths |= dict(_expanded(f"{name}'s {key}", module_name, module, value))
    return layer_strengths(strengths)


def _expanded(label: str, name: str, module: nn.Module, given: Any) -> Iterator[tuple[str, float]]:
    """Yield the strengths of a module and of modules in it, by their dotted names."""
    blocks = dict(module.named_children()) if isinstance(module, nn.ModuleList) else {}
    if isinstance(given, Mapping):
        known = {f"block_{number}": number for number in blocks}
        for key, value in given.items():
            if key not in known:
                choice = f"numbers for {shorten(known)}" if known else "a number"
                raise ConfigError(f"The strengths of the {label} name {key!r}: give {choice}.")
            number = known[key]
            yield from _expanded(f"{label} {key}", f"{name}.{number}", blocks[number], value)
    elif isinstance(given, Sequence) and not isinstance(given, str):
        yield from _listed(label, name, module, [_number(label, value) for value in given])
    else:
        yield name, _number(label, given)


def _listed(label: str, name: str, module: nn.Module, numbers: list[float]) -> Iterator[tuple[str, float]]:
    """Yield the strengths of a list: of the blocks of a module list, or of the attentions of a UNet's block."""
    attentions = getattr(module, "attentions", None) or getattr(module, "resnets", None)
    if isinstance(module, nn.ModuleList) and not any(hasattr(block, "resnets") for block in module):
        parts, count = [""], len(module)
    elif isinstance(module, nn.ModuleList):  # diffusers repeats the list of a UNet's "down" and "up" in every block
        for number, block in enumerate(module):
            yield from _listed(f"{label} block_{number}", f"{name}.{number}", block, numbers)
        return
    elif attentions is None:
        raise ConfigError(f"The strengths of the {label} are a list: give a number.")
    else:
        parts, count = ["attentions.", "resnets."], len(attentions)
    expanded = numbers * count if len(numbers) == 1 else numbers
    if len(expanded) != count:
        raise ConfigError(f"The {label} needs {count} strengths, or a single number; found {len(numbers)}.")
    yield name, expanded[-1]
    for part in parts:
        yield from ((f"{name}.{part}{number}", value) for number, value in enumerate(expanded))


def _number(label: str, value: Any) -> float:
    if not isinstance(value, Real):
        raise ConfigError(f"The strength of the {label} is {value!r}: give a number.")
    return float(value)


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _keys(model: HRAModel) -> list[str]:
    """List the keys of a component's table: blocks of a UNet, or else the outer modules with adapted layers."""
    if hasattr(model.model, "up_blocks"):
        return list(_UNET_BLOCKS)
    return list(dict.fromkeys(name.partition(".")[0] for name in model.adapted_layers()))
