"""Flags of the commands that load a base model, and the paths that a run records."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from hra_diffusion.formats.run_folder import BASE_OPTIONS, BASE_PATHS
from hra_diffusion.resources import recorded_path
from hra_diffusion.training.config.file import flat_values, with_values
from hra_diffusion.training.config.root import TrainingConfig

Config = TypeVar("Config", bound=TrainingConfig)

Offload = Literal["none", "model", "sequential", "group"]

_FOLDERS = (
    "instance_data_dir",
    "class_data_dir",
    "mask_data_dir",
    "train_data_dir",
    "validation_data_dir",
    "cache_dir",
)


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The base model of a command, where it is not the one that the adapter's training run recorded."""

    revision: str | None = None
    """Branch, tag or commit of a base model on the hub. By default that of the adapter's training run."""
    variant: str | None = None
    """Variant of the base model's weight files, such as fp16. By default that of the adapter's training run."""
    pretrained_vae_model_name_or_path: str | None = None
    """Autoencoder (VAE) in place of the base model's: folder or hub name. By default that of the adapter's
    training run."""

    pretrained_config_name_or_path: str | None = None
    """Configuration of a base model in a single file: model folder or hub name. By default that of the adapter's
    training run, or the folder beside the file."""
    clip_skip: int | None = None
    """Clip skip: number of CLIP's last layers that prompts skip. By default that of the adapter's training run."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None
    """Prediction of the base model's denoiser: noise, v or the image. By default that of the adapter's training run,
    and then the one that a single file or the scheduler names."""

    @property
    def base_options(self) -> dict[str, Any]:
        """The given options of ``pipelines.load_pipeline``."""
        given = {option: getattr(self, name, None) for name, option in BASE_OPTIONS.items()}
        return {option: value for option, value in given.items() if value is not None and value is not False}


@dataclass(frozen=True, kw_only=True)
class PlacementConfig:
    """Precision and memory of a base model that generates images."""

    dtype: Literal["fp16", "bf16", "fp32"] | None = None
    """Precision of the base model. By default the training run's --mixed_precision on a GPU, and fp32 on a CPU."""
    offload: Offload = "none"
    """Storage of the models in main memory while a GPU does not need them: whole models, groups of layers, or single
    layers (sequential). Each of them needs less GPU memory, and more time, than the one before."""
    vae_tiling: bool = False
    """Decode images in overlapping tiles: less memory for large images."""
    vae_slicing: bool = False
    """Decode the images of a batch one by one: less memory for batches."""

    @property
    def placement(self) -> dict[str, Any]:
        """The options of ``pipelines.load_base``."""
        return {name: getattr(self, name) for name in ("dtype", "offload", "vae_tiling", "vae_slicing")}

    @property
    def memory_flags(self) -> list[str]:
        """The flags that lower the memory and are not in use, the most useful first."""
        unused = {"--dtype fp16": not self.dtype, "--offload model": self.offload == "none"}
        unused |= {"--vae_tiling": not self.vae_tiling, "smaller images": True}
        return [flag for flag, is_unused in unused.items() if is_unused]


def with_recorded_paths(config: Config) -> Config:
    """Return settings as a run records them, with absolute paths of its inputs."""
    values = flat_values(config)
    paths: dict[str, Any] = {
        name: recorded_path(values[name]) for name in (*BASE_PATHS, "init_adapter") if values.get(name)
    }
    paths |= {name: Path(recorded_path(str(values[name]))) for name in _FOLDERS if values.get(name)}
    if others := values.get("orthogonal_to"):
        paths["orthogonal_to"] = tuple(map(recorded_path, others))
    return with_values(config, paths)
