"""Reading and writing of PEFT's folder layout: adapter_config.json and adapter_model.safetensors.

Tensors are named `base_model.model.<module>.hra_u` and have shape (d, r), one column a reflection, in the order of the
product H = H₁ ⋯ H_r. All checks precede the first change of a model.
"""

import json
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from hra_diffusion.adapter.config import CONFIG_FILE, HRAConfig
from hra_diffusion.adapter.layers import wrap
from hra_diffusion.adapter.model import AdaptedModel, ejected
from hra_diffusion.adapter.state import COLUMNS
from hra_diffusion.adapter.targets import find_targets
from hra_diffusion.errors import AdapterFileError, ConfigError, TargetError
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.hub import check_arguments, local_folder
from hra_diffusion.formats.reading import read_json, reading
from hra_diffusion.formats.tensors import check_finite, read_metadata, read_tensors, tensors_file
from hra_diffusion.text import shorten

logger = logging.getLogger(__name__)

WEIGHTS_FILE: Final = "adapter_model.safetensors"
FILES: Final = (CONFIG_FILE, WEIGHTS_FILE)
PREFIX: Final = "base_model.model."
_CHOICES: Final = ("exclude_modules", "layers_to_transform", "layers_pattern")
# transformers 5 dropped this prefix from CLIPTextModel's module names, not from CLIPTextModelWithProjection's.
TEXT_PREFIX: Final = "text_model."


def save_adapter(
    model: AdaptedModel,
    folder: str | Path,
    adapter_name: str = "default",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write one adapter of a model into a folder in PEFT's layout; metadata are those of the safetensors file.

    Raises:
        ConfigError: the adapter is unknown.
        OutputError: the folder cannot be written; existing files are intact.
    """
    files = adapter_files(model, adapter_name, metadata)
    write_together({Path(folder) / name: data for name, data in files.items()})


def adapter_files(
    model: AdaptedModel,
    adapter_name: str = "default",
    metadata: Mapping[str, str] | None = None,
    *,
    base: str | None = None,
) -> dict[str, bytes]:
    """Return the files of one adapter of a model, by name.

    Args:
        model: the model.
        adapter_name: the adapter.
        metadata: those of the safetensors file; by default those of the file that the adapter was loaded from.
        base: name of the base model for an adapter that records none; by default the model's own name.

    Raises:
        ConfigError: the adapter is unknown.
        AdapterFileError: a weight is not finite.
    """
    config, tensors = model.adapter_state_dict(adapter_name)
    check_finite(tensors, f"The adapter {adapter_name!r}")
    base = config.base_model_name_or_path or base or getattr(model, "name_or_path", None) or None
    names = tuple(key.removesuffix(COLUMNS) for key in tensors if key.endswith(COLUMNS))
    if not _selects(model, config, names):  # the modules were chosen by a state_dict
        config = replace(config, target_modules=names, **dict.fromkeys(_CHOICES))
    kept = model.file_metadata.get(adapter_name, {}) if metadata is None else metadata
    return encoded_files(replace(config, base_model_name_or_path=base), tensors, {"format": "pt", **kept})


def encoded_files(config: HRAConfig, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files of an adapter, by name.

    Args:
        config: its settings.
        tensors: its tensors by `<module>.hra_u`, as :func:`read_adapter` returns them.
        metadata: metadata of the safetensors file.
    """
    settings = replace(config, inference_mode=True).to_peft()
    weights = tensors_file({f"{PREFIX}{name}": tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    return {WEIGHTS_FILE: weights, CONFIG_FILE: json.dumps(settings, indent=2, sort_keys=True).encode()}


def read_adapter(folder: str | Path) -> tuple[HRAConfig, dict[str, Tensor]]:
    """Read and check an adapter folder; return its settings, and its tensors by `<module>.hra_u`.

    Raises:
        AdapterFileError: a file is missing, damaged, or of another kind of adapter.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AdapterFileError(f"{folder} is no folder with an adapter ({CONFIG_FILE} and {WEIGHTS_FILE}).")
    weights = weights_file(folder)
    settings = read_json(folder / CONFIG_FILE)
    try:
        with reading(folder / CONFIG_FILE):
            config = HRAConfig.from_peft(settings)
    except ConfigError as error:
        raise AdapterFileError(f"{folder / CONFIG_FILE}: {error}") from error
    return config, _renamed(read_tensors(weights), lambda name: name.removeprefix(PREFIX))


def weights_file(folder: Path) -> Path:
    """Return the path of an adapter folder's tensors.

    Raises:
        AdapterFileError: the folder has a pickled file instead.
    """
    weights = folder / WEIGHTS_FILE
    if not weights.exists() and (pickled := [path.name for path in folder.glob("*.bin")]):
        raise AdapterFileError(
            f"{folder} holds {pickled[0]}, which is pickled and never read: save it as {WEIGHTS_FILE}."
        )
    return weights


def read_file_metadata(folder: str | Path) -> dict[str, str]:
    """Return the metadata of an adapter folder's safetensors file, without its format."""
    metadata = read_metadata(weights_file(Path(folder)))
    return {key: text for key, text in metadata.items() if key != "format"}


def swap_adapter(
    model: AdaptedModel, folder: str | Path, adapter_name: str = "default", *, subfolder: str | None = None, **hub: Any
) -> None:
    """Read an adapter folder over an adapter of a model, in place: see `AdaptedModel.swap_adapter`.

    Raises:
        AdapterFileError: the files are missing, damaged, or do not fit; the model is unchanged.
    """
    check_arguments(swap_adapter, hub)
    source = local_folder(folder, subfolder, FILES, **hub)
    model.swap_adapter(*read_adapter_for(model, source), adapter_name)
    model.file_metadata[adapter_name] = read_file_metadata(source)


def read_adapter_for(
    model: nn.Module,
    folder: str | Path,
    is_trainable: bool = False,
    *,
    key_mapping: Mapping[str, str] | None = None,
    ignore_mismatched_sizes: bool = False,
) -> tuple[HRAConfig, dict[str, Tensor]]:
    """Read an adapter folder, and check its completeness for a model.

    Args:
        model: the model.
        folder: the adapter's folder.
        is_trainable: whether the adapter will train.
        key_mapping: replacements in the tensors' names, by regular expression, as in PEFT.
        ignore_mismatched_sizes: leave out, with a warning, columns of another length than their layer's inputs.

    Raises:
        AdapterFileError: the files are missing, damaged, or incomplete.
    """
    config, tensors = read_adapter(folder)
    for pattern, replacement in (key_mapping or {}).items():
        tensors = _renamed(tensors, partial(re.sub, pattern, replacement))
    with ejected(model) as base:
        tensors = _with_known_prefix(base, tensors)
        _check_complete(base, config, tensors)
        if ignore_mismatched_sizes:
            tensors = _without_mismatches(base, tensors)
    return replace(config, inference_mode=not is_trainable), tensors


def _without_mismatches(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out columns of another length than their layer's inputs, with a warning."""
    modules = dict(model.named_modules())
    misfits = [
        key
        for key, tensor in tensors.items()
        if (name := key.removesuffix(COLUMNS)) != key
        and name in modules
        and wrap(name, modules[name]).unfolded_size != len(tensor)
    ]
    if misfits:
        warnings.warn(f"Columns of another length than their layer's are left out: {shorten(misfits)}.", stacklevel=2)
    return {key: tensor for key, tensor in tensors.items() if key not in misfits}


def fits(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Whether a model has all modules of an adapter's tensors."""
    with ejected(model) as base:
        known = {f"{name}{COLUMNS}" for name, _ in base.named_modules()}
        return all(key in known for key in _with_known_prefix(base, tensors) if key.endswith(COLUMNS))


def _with_known_prefix(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add or remove the prefix `text_model.`, so that the model has most of the modules."""
    known = {f"{name}{COLUMNS}" for name, _ in model.named_modules()}
    spellings = (
        dict(tensors),
        _renamed(tensors, lambda key: key.removeprefix(TEXT_PREFIX)),
        _renamed(tensors, lambda key: f"{TEXT_PREFIX}{key}"),
    )
    return max(spellings, key=lambda spelling: len(known & spelling.keys()))


def _renamed(tensors: Mapping[str, Tensor], new: Callable[[str], str]) -> dict[str, Tensor]:
    renamed = {new(name): tensor for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        twice = sorted(name for name, count in Counter(map(new, tensors)).items() if count > 1)
        raise AdapterFileError(f"The adapter has two tensors of one name: {shorten(twice)}.")
    return renamed


def _selects(model: AdaptedModel, config: HRAConfig, names: Iterable[str]) -> bool:
    """Whether the settings select exactly these modules."""
    try:
        with ejected(model) as base:
            return set(find_targets(base, config)) == set(names)
    except TargetError:
        return False


def _check_complete(model: nn.Module, config: HRAConfig, keys: Iterable[str]) -> None:
    """Refuse a file without tensors for modules of its configuration, except in parts that were added to the model."""
    try:
        expected = {f"{name}{COLUMNS}" for name in find_targets(model, config)}
    except TargetError:
        return  # The configuration has the names of another version of the model; the weights decide.
    adapted = {key for key in keys if key.endswith(COLUMNS)}
    parts = {part for key in adapted for part in accumulate(_parent(key).split("."), "{}.{}".format)}
    missing = sorted(key for key in expected - adapted if _parent(key) in parts or not adapted)
    if missing:
        raise AdapterFileError(
            f"The adapter has no weights for {len(missing)} of the {len(expected)} modules of its configuration in "
            f"this model: {shorten(missing)}. It is damaged, or was made for another model."
        )
    if added := sorted(key.removesuffix(COLUMNS) for key in expected - adapted):
        logger.warning(
            "The model has %d modules that the adapter was made without; they stay as they are: %s.",
            len(added),
            shorten(added),
        )


def _parent(key: str) -> str:
    """Return the name of the module around a tensor's module, without the numbers of blocks and layers."""
    names = [part for part in key.removesuffix(COLUMNS).split(".") if not part.isdecimal()]
    return ".".join(names[:-1])
