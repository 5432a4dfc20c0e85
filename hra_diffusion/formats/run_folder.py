"""Files of a run beside its adapter: config.toml, before_after.png, the numbers of ``hra-diffusion evaluate``.

Functions take the run's folder or the adapter's, one below.
"""

from pathlib import Path

SHEET, METRICS, TABLE, FIGURE = "before_after.png", "metrics.json", "metrics.md", "metrics.png"
RESULTS = (SHEET, METRICS, TABLE, FIGURE)
"""Results about an adapter, in its folder or beside a run's ``adapter``."""

BASE_OPTIONS = {
    "revision": "revision",
    "variant": "variant",
    "pretrained_vae_model_name_or_path": "vae",
    "prediction_type": "prediction_type",
    "rescale_betas_zero_snr": "rescale_betas_zero_snr",
    "clip_skip": "clip_skip",
}
"""Settings of a run that say what its base is, each with its option of ``pipelines.load_pipeline``."""


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
