"""Interpolation between two adapters: H_a (H_aᵀ H_b)ᵗ in each layer."""

from pathlib import Path

from torch import Tensor
from torch.nn.functional import pad

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.adapter.state import COLUMNS
from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.formats.chains import chain_of_columns
from hra_diffusion.formats.derived import Component, check_output, write_derived
from hra_diffusion.formats.folders import component_folders, encoder_beside, tokens_beside
from hra_diffusion.formats.peft import TEXT_PREFIX, read_adapter
from hra_diffusion.householder.geodesic import interpolate


def interpolate_adapters(first: str | Path, second: str | Path, t: float, output: str | Path) -> Path:
    """Write the adapter at position t of the geodesic from one adapter to another.

    Args:
        first: the adapter at t = 0: its folder, its run's, or a repository on the hub.
        second: the adapter at t = 1, of the same base model. A layer that only one of them adapts is the base's in the
            other.
        t: position; values outside of [0, 1] extrapolate.
        output: the folder to write. The rank is the sum of both ranks.

    Returns:
        The folder.

    Raises:
        AdapterFileError: there is no adapter, it is damaged, or the adapters are for layers of different widths.
        ConfigError: an adapter is a control or trains more than reflections (learned tokens, biases, whole modules,
            magnitudes), or one rank is odd and the other even.
        OutputError: the folder holds an adapter already, or cannot be written.
    """
    output = Path(output)
    check_output(output)
    a, b = _read_plain(first), _read_plain(second)
    components: dict[str, Component] = {}
    for name in dict.fromkeys([*a, *b]):
        (config, ours), (_, theirs) = a.get(name) or (b[name][0], {}), b.get(name) or (a[name][0], {})
        tensors: dict[str, Tensor] = {}
        for key in dict.fromkeys([*ours, *theirs]):
            known = ours[key] if key in ours else theirs[key]
            one, other = (chains.get(key, known[:, :0]) for chains in (ours, theirs))
            if len(one) != len(other):
                raise AdapterFileError(
                    f"{second} is for another base model than {first}: {key.removesuffix(COLUMNS)} has {len(other)} "
                    f"inputs instead of {len(one)}."
                )
            tensors[key] = interpolate(one.float(), other.float(), t)
        rank = max(columns.shape[1] for columns in tensors.values())
        rank += rank % 2
        padded = {key: pad(columns, (0, rank - columns.shape[1])) for key, columns in tensors.items()}
        settings = HRAConfig(
            r=rank,
            target_modules=tuple(key.removesuffix(COLUMNS) for key in padded),
            base_model_name_or_path=config.base_model_name_or_path,
            revision=config.revision,
        )
        components[name] = settings, padded
    write_derived(first, output, components, keep_slot=False)
    return output


def _read_plain(source: str | Path) -> dict[str, Component]:
    """Read an adapter of reflections alone, by component; columns after Gram–Schmidt, if set."""
    parts = component_folders(source)
    if encoder_beside(parts):
        raise ConfigError(f"{source} is a control, which cannot be interpolated.")
    if tokens_beside(parts):
        raise ConfigError(f"{source} has learned tokens, which cannot be interpolated.")
    components: dict[str, Component] = {}
    for name, folder in parts.items():
        config, tensors = read_adapter(folder)
        if extra := sorted(key for key in tensors if not key.endswith(COLUMNS)):
            raise ConfigError(f"{source} trains more than reflections, which cannot be interpolated: {extra[0]}.")
        chains = {key.removeprefix(TEXT_PREFIX): chain_of_columns(u, config) for key, u in tensors.items()}
        components[name] = config, chains
    return components
