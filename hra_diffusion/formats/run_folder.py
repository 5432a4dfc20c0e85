"""Files of a run beside its adapter: config.toml, before_after.png, the numbers of ``hra-diffusion evaluate``.

Functions take the run's folder or the adapter's, one below.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hra_diffusion.errors import AdapterFileError

SHEET, METRICS, TABLE, FIGURE = "before_after.png", "metrics.json", "metrics.md", "metrics.png"
RESULTS = (SHEET, METRICS, TABLE, FIGURE)
"""Results about an adapter, in its folder or beside a run's ``adapter``."""

BASE_OPTIONS = {
    "revision": "revision",
    "variant": "variant",
    "pretrained_vae_model_name_or_path": "vae",
    "pretrained_config_name_or_path": "config",
    "prediction_type": "prediction_type",
    "rescale_betas_zero_snr": "rescale_betas_zero_snr",
    "clip_skip": "clip_skip",
}
"""Settings of a run that say what its base is, each with its option of ``pipelines.load_pipeline``."""

BASE_PATHS = (
    "pretrained_model_name_or_path",
    "pretrained_vae_model_name_or_path",
    "pretrained_config_name_or_path",
)
"""Settings of a run that name models, by path or hub name."""

BASE_FILE = "base.json"
"""File in an adapter's folder with the settings of its base, beside those that PEFT's files have."""
_KINDS = {"rescale_betas_zero_snr": bool, "clip_skip": int}


def base_files(settings: Mapping[str, Any], mixed_precision: str = "no") -> dict[str, bytes]:
    """Return the file that records an adapter's base, by name; none without settings other than the defaults.

    Args:
        settings: options of ``pipelines.load_pipeline``.
        mixed_precision: precision of the training run: no, fp16 or bf16.
    """
    record: dict[str, Any] = {flag: settings[name] for flag, name in BASE_OPTIONS.items() if settings.get(name)}
    record |= {} if mixed_precision == "no" else {"mixed_precision": mixed_precision}
    return {BASE_FILE: json.dumps(record, indent=2).encode()} if record else {}


def base_settings(settings: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], str]:
    """Check the settings of a base that a file records, by flag.

    Returns:
        The options of ``pipelines.load_pipeline``, and the precision: no, fp16 or bf16.

    Raises:
        AdapterFileError: a setting has the wrong type, or the precision is another one.
    """
    for flag in BASE_OPTIONS:
        value, kind = settings.get(flag), _KINDS.get(flag, str)
        if value is not None and type(value) is not kind:
            raise AdapterFileError(f"{path} has {flag} = {value!r}, which should be of the type {kind.__name__}.")
    precision = settings.get("mixed_precision", "no")
    if precision not in ("no", "fp16", "bf16"):
        raise AdapterFileError(f"{path} has mixed_precision = {precision!r}, which should be no, fp16 or bf16.")
    return {option: settings.get(flag) or None for flag, option in BASE_OPTIONS.items()}, precision


def run_file(folder: str | Path, name: str) -> Path | None:
    """Find a file of an adapter's run, in the adapter's folder or the one above; also for a checkpoint."""
    folder = Path(folder)
    return next((path for path in (folder / name, folder.absolute().parent / name) if path.is_file()), None)


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / "config.toml").is_file() and (folder / "log.jsonl").is_file()


def results_folder(folder: str | Path) -> Path:
    """Return the folder of an adapter's results: its own, or the run's for a run's final adapter."""
    folder = Path(folder).absolute()
    is_final = folder.name == "adapter" and (folder.parent / "config.toml").is_file()
    return folder.parent if is_final else folder


def result_file(folder: str | Path, name: str) -> Path | None:
    """Find a result about an adapter; a checkpoint's results are not those of its run."""
    path = results_folder(folder) / name
    return path if path.is_file() else None
