"""Adapters made of other adapters' files: new columns, and everything else of the folder as it was."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from hra_diffusion.adapter.config import HRAConfig
from hra_diffusion.errors import AdapterFileError, ConfigError, OutputError
from hra_diffusion.formats.chains import SLOT
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.folders import ENCODER, ENCODER_FILES, adapter_folder, component_folders, holds_adapter
from hra_diffusion.formats.peft import WEIGHTS_FILE, encoded_files
from hra_diffusion.formats.reading import read_bytes
from hra_diffusion.formats.run_folder import BASE_FILE, run_file
from hra_diffusion.formats.tensors import check_finite, read_metadata
from hra_diffusion.formats.tokens import PATTERN

Component = tuple[HRAConfig, Mapping[str, Tensor]]
"""Settings of an adapter in one component, and its tensors by `<module>.hra_u`."""


def check_output(output: Path) -> None:
    """Check that a folder can hold a new adapter.

    Raises:
        OutputError: it holds one already.
    """
    if holds_adapter(output):
        raise OutputError(f"{output} holds an adapter already: choose another folder.")


def check_even_rank(rank: int) -> None:
    """Check the rank of an adapter that is computed as rotations.

    Raises:
        ConfigError: it is odd, or less than 2.
    """
    if rank < 2 or rank % 2:
        raise ConfigError(f"--rank is {rank}: give an even number of at least 2, since a rotation is two reflections.")


def write_derived(
    source: str | Path, output: Path, components: Mapping[str, Component], *, keep_slot: bool = True
) -> None:
    """Write an adapter with new tensors and the other files of its source.

    Args:
        source: the original adapter's folder, its run's, or a repository on the hub.
        output: the folder to write.
        components: by name; "" for PEFT's files in the folder itself.
        keep_slot: whether the new columns are within the slot of the source.

    Raises:
        AdapterFileError: a number is not finite.
        OutputError: the folder cannot be written.
    """
    parts = component_folders(source)
    contents: dict[Path, bytes] = {}
    for name, (config, tensors) in components.items():
        check_finite(tensors, f"The new adapter of {name or 'the model'}")
        metadata = read_metadata(parts[name] / WEIGHTS_FILE) if name in parts else {}
        metadata = {key: value for key, value in metadata.items() if keep_slot or key != SLOT}
        files = encoded_files(config, tensors, metadata | {"format": "pt"})
        contents |= {output / name / file: data for file, data in files.items()}
    root = adapter_folder(parts)
    extras = [BASE_FILE, *(f"{ENCODER}/{name}" for name in ENCODER_FILES)]
    extras += [path.relative_to(root).as_posix() for path in sorted(root.glob(PATTERN))]
    contents |= {output / name: read_bytes(root / name) for name in extras if (root / name).is_file()}
    if record := run_file(root, "config.toml"):
        contents[output / "config.toml"] = read_bytes(record)
    write_together(contents)


def plain_config(config: HRAConfig, ranks: Mapping[str, int]) -> HRAConfig:
    """Return the settings of a plain chain with a rank for each module.

    Args:
        config: the settings of the adapter that it was made of.
        ranks: by module; a single rank needs no `rank_pattern`, which PEFT's HRA lacks.

    Raises:
        AdapterFileError: there is no module.
    """
    if not ranks:
        raise AdapterFileError("The adapter has no columns.")
    # The first pattern counts that fits the end of a name: longer names come first.
    pattern = dict(sorted(ranks.items(), key=lambda item: -len(item[0]))) if len(set(ranks.values())) > 1 else {}
    return replace(config, r=max(ranks.values()), apply_GS=False, rank_pattern=pattern)
