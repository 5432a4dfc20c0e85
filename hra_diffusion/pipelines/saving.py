"""Saving an adapter of a pipeline into a folder and on the hub: all its components, or none."""

from pathlib import Path
from typing import Any

from hra_diffusion.errors import ConfigError, OutputError
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.folders import ENCODER
from hra_diffusion.formats.hub import check_arguments
from hra_diffusion.formats.peft import CONFIG_FILE, adapter_files
from hra_diffusion.formats.run_folder import BASE_FILE
from hra_diffusion.formats.tokens import PATTERN, token_files
from hra_diffusion.pipelines.components import adapted_components, base_files_of, holders, offloading_suspended
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.pipelines.publishing import push_hra_weights
from hra_diffusion.pipelines.tokens import tokens_of


def save_hra_weights(
    pipe: Pipeline,
    folder: str | Path,
    adapter_name: str | None = None,
    *,
    push_to_hub: bool = False,
    repo_id: str | None = None,
    **hub: Any,
) -> Path:
    """Write an adapter into a folder, one sub-folder a component, all of them or none; return the folder.

    An adapter without a base model records the pipeline's.

    Args:
        pipe: a pipeline with the adapter.
        folder: the folder to write; it is created if need be.
        adapter_name: the adapter; the only one of the pipeline by default.
        push_to_hub: also publish the folder on the hub.
        repo_id: the repository on the hub; the folder's name by default.
        hub: arguments of `push_hra_weights`: revision, private, token, license, images, …

    Raises:
        ConfigError: the adapter is unknown, or left out with several to choose from.
        OutputError: the folder cannot be written, or holds an adapter of other components, which would mix with it; or
            the hub refuses it, with the folder written.
    """
    check_arguments(save_hra_weights, hub, push_hra_weights)
    folder = Path(folder)
    adapter_name = _only_adapter(pipe) if adapter_name is None else adapter_name
    components = holders(pipe, adapter_name)
    foreign = sorted({path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}")} - components.keys())
    if any(folder.glob(f"adapter/*/{CONFIG_FILE}")):
        raise OutputError(f"{folder} is a run's, whose own adapter would be hidden: save into another folder.")
    tokens = token_files(tokens_of(pipe, adapter_name))
    foreign += sorted({path.relative_to(folder).as_posix() for path in folder.glob(PATTERN)} - tokens.keys())
    foreign += [ENCODER] if (folder / ENCODER).is_dir() else []
    if foreign:
        raise OutputError(f"{folder} holds an adapter of {', '.join(foreign)} already: save into another folder.")
    base = str(getattr(pipe, "name_or_path", None) or "") or None  # from_pretrained(Path) leaves a path
    with offloading_suspended(pipe):
        contents = {
            folder / component / name: data
            for component, model in components.items()
            for name, data in adapter_files(model, adapter_name, base=base).items()
        }
        contents |= {folder / path: data for path, data in tokens.items()}
    if record := base_files_of(pipe) or ({BASE_FILE: b"{}"} if (folder / BASE_FILE).exists() else {}):
        contents |= {folder / name: data for name, data in record.items()}
    write_together(contents)
    if push_to_hub:
        push_hra_weights(folder, repo_id or folder.resolve().name, **hub)
    return folder


def _only_adapter(pipe: Pipeline) -> str:
    names = {name for component in adapted_components(pipe).values() for name in component.peft_config}
    if len(names) != 1:
        raise ConfigError(f"Name the adapter to save; there are: {', '.join(sorted(names)) or 'none'}.")
    return names.pop()
