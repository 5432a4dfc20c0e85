"""The folder of an adapter: one sub-folder for every adapted component.

    tiger/
    ├── unet/          adapter_config.json, adapter_model.safetensors
    ├── text_encoder/  the same
    ├── tokens/        learned tokens, if any: see :mod:`hra_diffusion.formats.tokens`
    ├── condition_encoder/  of a control: see :mod:`hra_diffusion.control.loading`
    └── base.json      settings of the base, such as its variant, other than the defaults

A run's output folder has it as ``adapter``. PEFT's files in the folder itself belong to a single component.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.hub import local_folder
from hra_diffusion.formats.peft import CONFIG_FILE, FILES, WEIGHTS_FILE
from hra_diffusion.formats.reading import parse_toml, read_bytes, read_json
from hra_diffusion.formats.run_folder import BASE_FILE, BASE_PATHS, base_settings, run_file
from hra_diffusion.formats.tokens import PATTERN, Tokens, read_tokens
from hra_diffusion.resources import find_data, relative_to

_BASE = "base_model_name_or_path"
ENCODER, ENCODER_FILES = "condition_encoder", ("config.json", "diffusion_pytorch_model.safetensors")

_PATTERNS = (
    *(prefix + name for prefix in ("", "*/", "adapter/*/") for name in FILES),
    "config.toml",
    *(prefix + name for prefix in ("", "adapter/") for name in (BASE_FILE, PATTERN, f"{ENCODER}/{ENCODER_FILES[0]}")),
)


def component_folders(source: str | Path, subfolder: str | None = None, **hub: Any) -> dict[str, Path]:
    """Find the folders with an adapter's files, by component; "" stands for PEFT's files in the folder itself.

    Args:
        source: the adapter's folder, the output folder of its run, or the id of a repository on the hub.
        subfolder: the adapter's folder within it.
        hub: arguments of `huggingface_hub.snapshot_download`.

    Raises:
        AdapterFileError: there is no adapter.
    """
    root = local_folder(source, subfolder, _PATTERNS, **hub)
    for folder in (root, root / "adapter"):
        parts = {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{CONFIG_FILE}"))}
        if parts and folder.name not in parts:
            return parts
    if (root / CONFIG_FILE).exists():
        return {"": root}
    raise AdapterFileError(
        f"There is no adapter in {root}{relative_to(root)}: name the output folder of a run, or an adapter's, which "
        f"holds one sub-folder for each adapted component (unet, text_encoder), with {CONFIG_FILE} and {WEIGHTS_FILE}."
    )


def tokens_beside(parts: Mapping[str, Path]) -> Tokens:
    """Read the learned tokens beside the folders of :func:`component_folders`.

    Raises:
        AdapterFileError: a file is damaged.
    """
    return read_tokens(adapter_folder(parts))


def encoder_beside(parts: Mapping[str, Path]) -> Path | None:
    """Return the folder of a control's encoder beside the folders of :func:`component_folders`, if any."""
    return next((path for part in parts.values() if (path := part.parent / ENCODER).is_dir()), None)


def holds_adapter(folder: Path) -> bool:
    """Whether a folder is an adapter's, or a run's with an adapter."""
    return any(path for parent in (".", "*", "adapter/*") for path in folder.glob(f"{parent}/{CONFIG_FILE}"))


def adapters_within(folder: Path) -> list[Path]:
    """Return the sub-folders of a folder that hold adapters, in alphabetical order."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and holds_adapter(path))


def find_encoder(source: str | Path, subfolder: str | None = None, **hub: Any) -> Path | None:
    """Return the folder of a control's encoder; None for an adapter that is no control."""
    patterns = [f"{prefix}{ENCODER}/{name}" for prefix in ("", "adapter/") for name in ENCODER_FILES]
    root = local_folder(source, subfolder, patterns, **hub)
    return next((path for folder in (root, root / "adapter") if (path := folder / ENCODER).is_dir()), None)


def base_model(source: str | Path, subfolder: str | None = None, **hub: Any) -> str | None:
    """Return the name of an adapter's base model, if its files have one.

    Raises:
        AdapterFileError: there is no adapter.
    """
    return recorded_base(source, subfolder, **hub).name


@dataclass(frozen=True, kw_only=True)
class RecordedBase:
    """What the files of an adapter and of its run say about the base model."""

    name: str | None = None
    """Folder, single file, or name on the hub."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of ``pipelines.load_pipeline``: revision, variant, vae, …; unrecorded ones are missing."""
    mixed_precision: str = "no"
    """Precision of the frozen base in the training run: no, fp16 or bf16."""


def recorded_base(source: str | Path, subfolder: str | None = None, **hub: Any) -> RecordedBase:
    """Return an adapter's base model, from config.toml of its run, or else from its own files.

    The run's config.toml counts; another one beside the adapter counts only if it is about the same base and the
    adapter's folder has no base.json.

    Raises:
        AdapterFileError: there is no adapter, or a file is damaged.
    """
    parts = component_folders(source, subfolder, **hub)
    named = next((json for part in parts.values() if (json := read_json(part / CONFIG_FILE)).get(_BASE)), {})
    name, record_file = named.get(_BASE), adapter_folder(parts) / BASE_FILE
    record = read_json(record_file) if record_file.is_file() else None
    run, path = _run_table(source), run_file(source, "config.toml")
    run_name = run.get("pretrained_model_name_or_path")
    if run and (_is_of_run(Path(source)) or (record is None and name in (None, run_name))):
        name, settings = run_name or name, run
    elif record is None:
        return RecordedBase(name=name, options={"revision": named.get("revision")})
    else:
        settings, path = {"revision": named.get("revision")} | record, record_file
    options, mixed_precision = base_settings(settings, path or record_file)
    return RecordedBase(name=name, options=options, mixed_precision=mixed_precision)


def adapter_folder(parts: Mapping[str, Path]) -> Path:
    """Return the adapter's folder, of the folders of :func:`component_folders`."""
    return parts[""] if "" in parts else next(iter(parts.values())).parent


def _is_of_run(folder: Path) -> bool:
    """Whether a folder is that of a run, of its final adapter or of one of its checkpoints."""
    return (folder / "config.toml").is_file() or folder.name == "adapter" or folder.name.startswith("checkpoint-")


def public_name(model: str) -> str:
    """Return the name of a model for publication: a local folder, or one of the project's, without its path."""
    path = Path(find_data(model))
    return path.name if path.is_absolute() or path.is_dir() else model


def run_settings(folder: str | Path) -> dict[str, Any]:
    """Return the settings of an adapter's run by flag, for publication; empty without a config.toml.

    Paths are left out.

    Raises:
        AdapterFileError: the file is damaged.
    """
    flat = {key: value for key, value in _run_table(folder).items() if not key.endswith("_dir")}
    return flat | {key: public_name(flat[key]) for key in BASE_PATHS if flat.get(key)}


def _run_table(folder: str | Path) -> dict[str, Any]:
    """Return the settings in the config.toml of an adapter's run, by flag; empty without the file."""
    path = run_file(folder, "config.toml")
    if path is None:
        return {}
    try:
        table = parse_toml(read_bytes(path).decode())
    except ValueError as error:
        if isinstance(error, AdapterFileError):
            raise
        raise AdapterFileError(f"{path} is not valid TOML: {error}") from error
    groups = [value if isinstance(value, dict) else {key: value} for key, value in table.items()]
    return {key: value for group in groups for key, value in group.items()}
