"""The chains of an adapter's files, layer by layer."""

from pathlib import Path

from torch import Tensor

from hra_diffusion.adapter.config import CONFIG_FILE, HRAConfig
from hra_diffusion.adapter.state import COLUMNS
from hra_diffusion.formats.folders import component_folders
from hra_diffusion.formats.peft import TEXT_PREFIX, WEIGHTS_FILE, read_adapter
from hra_diffusion.formats.reading import read_json
from hra_diffusion.formats.tensors import read_metadata
from hra_diffusion.householder.gram_schmidt import orthonormal_columns

SLOT = "slot"
"""Key of an adapter's slot in the metadata of its safetensors files."""


def chain_of_columns(columns: Tensor, config: HRAConfig) -> Tensor:
    """Return the columns (d, r) of the chain that columns of a file stand for: after Gram–Schmidt, if set."""
    return orthonormal_columns(columns.double()) if config.apply_GS else columns


def read_chains(source: str | Path) -> dict[str, Tensor]:
    """Read the columns (d, r) of each layer of an adapter, by "component.module".

    Names of text encoders' modules have no prefix `text_model.`, which depends on the version of transformers.

    Args:
        source: the adapter's folder, the output folder of its run, the folder of one component, or a repository on the
            hub.

    Raises:
        AdapterFileError: there is no adapter, or it is damaged.
    """
    chains: dict[str, Tensor] = {}
    for component, part in component_folders(source).items():
        config, tensors = read_adapter(part)
        for key, columns in tensors.items():
            if key.endswith(COLUMNS):
                module = key.removesuffix(COLUMNS).removeprefix(TEXT_PREFIX)
                chains[f"{component or part.resolve().name}.{module}"] = chain_of_columns(columns, config)
    return chains


def has_magnitudes(source: str | Path) -> bool:
    """Return whether an adapter has magnitudes, by its settings.

    Raises:
        AdapterFileError: there is no adapter, or it is damaged.
    """
    parts = component_folders(source).values()
    return any(read_json(part / CONFIG_FILE).get("use_magnitude") is True for part in parts)


def read_slot(source: str | Path) -> str | None:
    """Return the slot "i/n" that an adapter was trained in; None without one.

    Raises:
        AdapterFileError: there is no adapter, or it is damaged.
    """
    files = [part / WEIGHTS_FILE for part in component_folders(source).values()]
    return next((slot for file in files if (slot := read_metadata(file).get(SLOT))), None)
