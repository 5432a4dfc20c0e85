"""Where an adapter's files are: one sub-folder for each component that it adapts.

    tiger/
    ├── unet/          adapter_config.json, adapter_model.safetensors
    ├── text_encoder/  the same
    ├── tokens/        learned tokens, if any: see :mod:`hra_diffusion.formats.tokens`
    └── condition_encoder/  of a control: see :mod:`hra_diffusion.control.loading`

A run's output folder has it as ``adapter``. Files of PEFT that lie in the folder itself are those of one component.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.files import read_json
from hra_diffusion.formats.hub import local_folder
from hra_diffusion.formats.peft import CONFIG_FILE, FILES, WEIGHTS_FILE
from hra_diffusion.formats.run_folder import run_file, tomllib
from hra_diffusion.formats.tokens import PATTERN, Tokens, read_tokens

ENCODER, ENCODER_FILES = "condition_encoder", ("config.json", "diffusion_pytorch_model.safetensors")

_PATTERNS = (
    *(place + name for place in ("", "*/", "adapter/*/") for name in FILES),
    *(place + name for place in ("", "adapter/") for name in (PATTERN, f"{ENCODER}/{ENCODER_FILES[0]}")),
)


def component_folders(source: str | Path, subfolder: str | None = None, **hub: Any) -> dict[str, Path]:
    """Find the folders with an adapter's files, by component; "" where PEFT's files lie in the folder itself.

    Args:
        source: the adapter's folder, the output folder of the run that made it, or the id of a repository on the hub.
        subfolder: where in it the adapter is.
        hub: what `huggingface_hub.snapshot_download` takes.

    Raises:
        AdapterFileError: there is none.
    """
    folder = local_folder(source, subfolder, _PATTERNS, **hub)
    for place in (folder, folder / "adapter"):
        found = {path.parent.name: path.parent for path in sorted(place.glob(f"*/{CONFIG_FILE}"))}
        if found and place.name not in found:
            return found
    if (folder / CONFIG_FILE).exists():
        return {"": folder}
    raise AdapterFileError(
        f"There is no adapter in {folder}: name the output folder of a run, or an adapter's, which holds one "
        f"sub-folder for each adapted component (unet, text_encoder), with {CONFIG_FILE} and {WEIGHTS_FILE}."
    )


def tokens_beside(parts: Mapping[str, Path]) -> Tokens:
    """Read the learned tokens of the adapter whose folders :func:`component_folders` found.

    Raises:
        AdapterFileError: a file is damaged.
    """
    return read_tokens(parts[""] if "" in parts else next(iter(parts.values())).parent)


def encoder_beside(parts: Mapping[str, Path]) -> Path | None:
    """Return the folder of a control's encoder beside the folders that :func:`component_folders` found, if any."""
    return next((path for part in parts.values() if (path := part.parent / ENCODER).is_dir()), None)


def holds_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter's already, or a run's that has one."""
    return any(found for place in (".", "*", "adapter/*") for found in folder.glob(f"{place}/{CONFIG_FILE}"))


def find_encoder(source: str | Path, subfolder: str | None = None, **hub: Any) -> Path | None:
    """Return the folder of a control's encoder; None where an adapter has none, because it is no control."""
    patterns = [f"{place}{ENCODER}/{name}" for place in ("", "adapter/") for name in ENCODER_FILES]
    root = local_folder(source, subfolder, patterns, **hub)
    return next((place / ENCODER for place in (root, root / "adapter") if (place / ENCODER).is_dir()), None)


def base_model(source: str | Path, subfolder: str | None = None, **hub: Any) -> str | None:
    """Return the name of the base model an adapter was made for, if it says so.

    Raises:
        AdapterFileError: there is no adapter.
    """
    for part in component_folders(source, subfolder, **hub).values():
        if name := read_json(part / CONFIG_FILE).get("base_model_name_or_path"):
            return name
    return None


def public_name(model: str) -> str:
    """Return the name of a model as it may be published: of a folder of this machine, no more than its own name."""
    return Path(model).name if Path(model).is_absolute() or Path(model).is_dir() else model


def run_settings(folder: str | Path) -> dict[str, Any]:
    """Return the settings of the run that made an adapter, by flag, from its config.toml; nothing where there is none.

    Folders are left out: this is for publication.

    Raises:
        AdapterFileError: the file is damaged.
    """
    path = run_file(folder, "config.toml")
    if path is None:
        return {}
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterFileError(f"{path} is not valid TOML: {error}") from error
    groups = [value if isinstance(value, dict) else {key: value} for key, value in table.items()]
    flat = {key: value for group in groups for key, value in group.items() if not key.endswith("_dir")}
    model = flat.get("pretrained_model_name_or_path")
    return flat | ({"pretrained_model_name_or_path": public_name(model)} if model else {})
