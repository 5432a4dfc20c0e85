"""Adapters leave a pipeline for a folder, and for the hub: all of an adapter's components, or none."""

from pathlib import Path
from typing import Any

from hra_diffusion.errors import ConfigError, OutputError
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.folders import ENCODER
from hra_diffusion.formats.peft import CONFIG_FILE, adapter_files
from hra_diffusion.formats.tokens import PATTERN, token_files
from hra_diffusion.pipelines.components import adapted_components, holders, offloading_suspended
from hra_diffusion.pipelines.publishing import push_hra_weights
from hra_diffusion.pipelines.tokens import tokens_of


def save_hra_weights(
    pipe: Any,
    folder: str | Path,
    adapter_name: str | None = None,
    *,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    **hub: Any,
) -> Path:
    """Write an adapter into a folder, one sub-folder a component, all of them or none; returns the folder.

    Args:
        pipe: a pipeline with the adapter in it.
        folder: where to; it is made if need be.
        adapter_name: which adapter; the only one there is when left out.
        push_to_hub: publish the folder, too.
        repo_id: as what; under the folder's name when left out.
        hub: what `push_hra_weights` takes: revision, private, token, license, images, …

    Raises:
        ConfigError: there is no such adapter, or several to choose from.
        OutputError: the folder cannot be written, or holds an adapter of other components, which would mix with it; or
            the hub does not take it, though the folder is written.
    """
    folder = Path(folder)
    if adapter_name is None:
        names = {name for component in adapted_components(pipe).values() for name in component.peft_config}
        if len(names) != 1:
            raise ConfigError(f"Say which adapter to save; there are: {', '.join(sorted(names)) or 'none'}.")
        (adapter_name,) = names
    components = holders(pipe, adapter_name)
    strangers = sorted({path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}")} - components.keys())
    if any(folder.glob(f"adapter/*/{CONFIG_FILE}")):
        raise OutputError(f"{folder} is a run's, whose own adapter would be hidden: save into another folder.")
    words = token_files(tokens_of(pipe, adapter_name))
    strangers += sorted({path.relative_to(folder).as_posix() for path in folder.glob(PATTERN)} - words.keys())
    strangers += [ENCODER] if (folder / ENCODER).is_dir() else []
    if strangers:
        raise OutputError(f"{folder} holds an adapter of {', '.join(strangers)} already: save into another folder.")
    with offloading_suspended(pipe):
        contents = {
            folder / component / name: data
            for component, model in components.items()
            for name, data in adapter_files(model, adapter_name).items()
        }
        contents |= {folder / path: data for path, data in words.items()}
    write_together(contents)
    if push_to_hub:
        push_hra_weights(folder, repo_id or folder.resolve().name, **hub)
    return folder
