"""The tensors of an adapter by name, and their checks against a model.

    <module>.hra_u              columns (d, r) of an adapted module
    <module>.hra_log_magnitude  logarithms (out,) of its magnitude, where it has one
    <module>.base_layer.bias    its bias, where biases train
    <module>.bias               any other bias
    <module>.<parameter>        parameters of modules_to_save

These are the names in PEFT's files without their prefix `base_model.model`. PEFT's HRA has no magnitude.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final

from torch import Tensor, nn

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.adapter.targets import find_named
from hra_diffusion.errors import AdapterFileError
from hra_diffusion.text import shorten

COLUMNS: Final = ".hra_u"
MAGNITUDE: Final = ".hra_log_magnitude"
_BASE_BIAS: Final = ".base_layer.bias"
# PEFT writes the biases of modules_to_save three times when it saves all biases.
_PEFT_ECHOES: Final = (".modules_to_save.bias", ".original_module.bias")

MAX_LOG_MAGNITUDE: Final = 10
"""The largest logarithm of a magnitude in a file: outputs 22,000 times as large overflow in half precision."""

_OVERFLOW: Final = "numbers are not finite in the precision of the model"


@dataclasses.dataclass(frozen=True)
class AdapterState:
    """The tensors of an adapter by kind.

    Attributes:
        columns: module name → columns (d, r).
        magnitudes: module name → logarithms (out,) of its magnitude.
        biases: parameter name in the base model → bias.
        copies: module name → state dict of its trained copy.
    """

    columns: dict[str, Tensor]
    magnitudes: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    biases: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    copies: dict[str, dict[str, Tensor]] = dataclasses.field(default_factory=dict)

    def flat(self) -> dict[str, Tensor]:
        """Return the tensors by their names in a file, copied to the CPU."""
        return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in self.named().items()}

    def named(self) -> dict[str, Tensor]:
        """Return the tensors themselves by their names in a file."""
        named = {f"{module}{COLUMNS}": tensor for module, tensor in self.columns.items()}
        named |= {f"{module}{MAGNITUDE}": tensor for module, tensor in self.magnitudes.items()}
        for name, bias in self.biases.items():
            module = name.removesuffix(".bias")
            named[f"{module}{_BASE_BIAS}" if module in self.columns else name] = bias
        for module, state in self.copies.items():
            named |= {f"{module}.{name}": tensor for name, tensor in state.items()}
        return named


def sort_state(base: nn.Module, config: HRAConfig, state_dict: Mapping[str, Tensor]) -> AdapterState:
    """Sort the tensors of an adapter by kind, and check them against a model without adapters.

    Raises:
        AdapterFileError: the model lacks a module, a shape differs, or part of a trained module is missing.
    """
    state = AdapterState({})
    modules = dict(base.named_modules())
    parameters = dict(base.named_parameters()) if config.bias != "none" else {}
    trained = dict.fromkeys(find_named(base, config.modules_to_save or ()))
    unknown: list[str] = []
    for key, tensor in sorted(state_dict.items()):
        module = key.removesuffix(COLUMNS)
        bias = key.replace(_BASE_BIAS, ".bias")
        parents = accumulate(key.split(".")[:-1], "{}.{}".format)
        owner = next((name for name in parents if name in trained), None)
        if module != key and module in modules:
            state.columns[module] = tensor
        elif config.use_magnitude and (module := key.removesuffix(MAGNITUDE)) != key and module in modules:
            state.magnitudes[module] = tensor
        elif config.bias != "none" and key.endswith(_PEFT_ECHOES):
            continue
        elif owner is not None:
            state.copies.setdefault(owner, {})[key.removeprefix(f"{owner}.")] = tensor
        elif bias.split(".")[-1] == "bias" and bias in parameters:
            state.biases[bias] = tensor
        else:
            unknown.append(key)
    _refuse(config, "it has weights that the model lacks", unknown)
    misfits: list[str] = []
    overflowing: list[str] = []
    for name in trained:
        present, copied = modules[name].state_dict(), state.copies.get(name, {})
        expected = {key: tensor.shape for key, tensor in present.items()}
        actual = {key: tensor.shape for key, tensor in copied.items()}
        if actual != expected:
            misfits.append(f"{name} has {_shapes(actual)} instead of {_shapes(expected)}")
        else:
            overflowing += [f"{name}.{key}" for key in _overflowing(copied, present)]
    _refuse(config, "shapes differ", misfits)
    _refuse(config, _OVERFLOW, overflowing)
    return state


def check_columns(layers: Mapping[str, HRALayer], config: HRAConfig, columns: Mapping[str, Tensor]) -> None:
    """Check the shape of columns against their layers.

    Raises:
        AdapterFileError: a shape differs, or a tensor is not of floating-point numbers.
    """
    expected = {name: (layer.unfolded_size, config.rank_of(name)) for name, layer in layers.items()}
    misfits = [
        f"{name} has {tuple(columns[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if columns[name].shape != shape or not columns[name].is_floating_point()
    ]
    _refuse(config, "shapes differ", misfits)


def check_magnitudes(layers: Mapping[str, HRALayer], config: HRAConfig, magnitudes: Mapping[str, Tensor]) -> None:
    """Check the magnitudes of layers: one for each of their outputs, if the settings have magnitudes.

    Raises:
        AdapterFileError: a magnitude is missing, of another shape, not finite or out of its range.
    """
    misfits = [
        name
        for name, layer in layers.items()
        if config.use_magnitude and (name not in magnitudes or magnitudes[name].shape != (layer.magnitudes.size,))
    ]
    _refuse(config, "magnitudes are missing or of another shape", misfits)
    extreme = [
        name
        for name, values in sorted(magnitudes.items())
        if not (values.is_meta or (values.abs() <= MAX_LOG_MAGNITUDE).all())
    ]
    most = MAX_LOG_MAGNITUDE
    _refuse(config, f"logarithms of magnitudes are not numbers from −{most} to {most}", extreme)
    _refuse(config, "it has magnitudes without columns", sorted(magnitudes.keys() - layers.keys()))


def check_biases(parameters: Mapping[str, Tensor], config: HRAConfig, biases: Mapping[str, Tensor]) -> None:
    """Check biases against the parameters that an adapter trains.

    Raises:
        AdapterFileError: biases are missing, superfluous, or of another shape.
    """
    expected = {name: parameter.shape for name, parameter in parameters.items()}
    actual = {name: bias.shape for name, bias in biases.items()}
    misfits = [name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name)]
    _refuse(config, "biases are missing, too many or of another shape", sorted(misfits))
    _refuse(config, _OVERFLOW, _overflowing(biases, parameters))


def _overflowing(values: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[str]:
    """Return the names of values that are not finite in the dtype of their targets."""
    return [name for name, value in values.items() if not value.to(targets[name].dtype).isfinite().all()]


def _refuse(config: HRAConfig, reason: str, names: Sequence[str]) -> None:
    if names:
        made_for = f", made for {config.base_model_name_or_path}," if config.base_model_name_or_path else ""
        raise AdapterFileError(f"The adapter{made_for} does not fit the model; {reason}: {shorten(names)}.")


def _shapes(shapes: Mapping[str, Sequence[int]]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items()) or "nothing"
