"""The base model of an adapter: what it is by the adapter's files, and how it is loaded onto a device."""

from collections.abc import Iterable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from accelerate import PartialState
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from hra_diffusion.dtypes import to_dtype
from hra_diffusion.errors import ConfigError, ModelError
from hra_diffusion.formats.folders import RecordedBase, recorded_base
from hra_diffusion.formats.run_folder import BASE_OPTIONS
from hra_diffusion.pipelines.models import load_pipeline
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.resources import find_data

Offload = Literal["none", "model", "sequential", "group"]

_OF_ONE_MODEL = ("revision", "variant", "config")
PRECISIONS = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precision of the frozen model for each value of --mixed_precision."""


def find_base(
    adapters: Iterable[str | Path] = (),
    name: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    **hub: Any,
) -> RecordedBase:
    """Return the base model of adapters that the caller names, by default the one in the adapters' files.

    A base other than the recorded one has its own revision, variant and config; the other recorded settings apply to
    it, too.

    Args:
        adapters: folders of adapters or runs, or repositories on the hub.
        name: folder, file or hub name of the base; by default the recorded one.
        options: given options of `load_pipeline`, over the recorded ones.
        hub: arguments of `huggingface_hub.snapshot_download`, for the adapters.

    Raises:
        AdapterFileError: there is no adapter, or its files are damaged.
        ConfigError: the adapters record different settings.
        ModelError: neither the caller nor an adapter names a base.
    """
    records = {str(adapter): recorded_base(adapter, **hub) for adapter in adapters}
    given = dict(options or {})
    base_name = str(name) if name else next((record.name for record in records.values() if record.name), None)
    if base_name is None:
        raise ModelError(
            f"{' and '.join(records)} does not name its base model: add --pretrained_model_name_or_path (base=…)."
        )
    merged: dict[str, Any] = {}
    for option in dict.fromkeys(BASE_OPTIONS.values()):
        values = {
            adapter: record.options[option]
            for adapter, record in records.items()
            if option in record.options and (option not in _OF_ONE_MODEL or _is_same(str(record.name), base_name))
        }
        if option in given:
            merged[option] = given[option]
        elif len(set(values.values())) > 1:
            flag = next(flag for flag, other in BASE_OPTIONS.items() if other == option)
            listed = ", ".join(f"{value or 'none'} for {adapter}" for adapter, value in values.items())
            raise ConfigError(f"The adapters were trained with different --{flag} ({listed}): give the flag to choose.")
        elif any(values.values()):
            merged[option] = next(iter(values.values()))
    precision = next(iter(records.values())).mixed_precision if records else "no"
    return RecordedBase(name=str(find_data(base_name)), options=given | merged, mixed_precision=precision)


def load_base(
    base: RecordedBase,
    *,
    dtype: torch.dtype | str | None = None,
    offload: Offload = "none",
    vae_tiling: bool = False,
    vae_slicing: bool = False,
    device: torch.device | str | None = None,
) -> Pipeline:
    """Load a base model onto a device, to generate images.

    Args:
        base: the model.
        dtype: precision; by default that of the training run on a GPU, and float32 on a CPU.
        offload: what main memory keeps while the device does not need it: nothing, whole models, single layers
            ("sequential") or groups of layers.
        vae_tiling: decode images in overlapping tiles.
        vae_slicing: decode the images of a batch one by one.
        device: the device; by default accelerate's.

    Raises:
        ConfigError: the dtype or offloading does not exist, or the device has no memory to save.
        ModelError: the model cannot be loaded.
    """
    device = torch.device(device or PartialState().device or "cpu")
    if offload not in get_args(Offload):
        raise ConfigError(f"--offload is {offload!r}: give none, model, sequential or group.")
    if offload != "none" and device.type == "cpu":
        raise ConfigError(f"--offload is {offload}, but the models run on the CPU, from main memory: leave it out.")
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else PRECISIONS[base.mixed_precision]
    pipe = load_pipeline(str(base.name), **base.options, dtype=to_dtype(dtype))
    keep_vae_precision(pipe.vae)
    for name in (name for name, wanted in (("tiling", vae_tiling), ("slicing", vae_slicing)) if wanted):
        if not hasattr(pipe.vae, f"enable_{name}"):
            raise ConfigError(f"The autoencoder, {type(pipe.vae).__name__}, has no {name}: leave out --vae_{name}.")
        getattr(pipe.vae, f"enable_{name}")()
    decode_one_by_one(pipe, device)
    return move_or_offload(pipe, device, offload)


def move_or_offload(pipe: Pipeline, device: torch.device, offload: Offload = "none") -> Pipeline:
    """Move a pipeline to a device, or let it offload to main memory; returns the pipeline."""
    if offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif offload == "group":
        pipe.enable_group_offload(device, offload_type="leaf_level")
    else:
        pipe.to(device)
    return pipe


def decode_one_by_one(pipe: Pipeline, device: torch.device) -> None:
    """Decode the images of a batch one by one on a device with memory of its own; a CPU decodes them together."""
    if device.type != "cpu" and hasattr(pipe.vae, "enable_slicing"):
        pipe.vae.enable_slicing()


def keep_vae_precision(vae: Any) -> None:
    """Let an autoencoder compute in its own precision, whatever its inputs have, even under autocast.

    SDXL's overflows in float16. Latents are returned in the precision of the images.
    """
    decode, encode = vae.decode, vae.encode

    @wraps(decode)
    def decode_in_vae_precision(latents: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(latents.device.type, enabled=False):
            return decode(latents.to(vae.dtype), *args, **kwargs)

    @wraps(encode)
    def encode_in_vae_precision(images: Tensor, *args: Any, **kwargs: Any) -> Any:
        encoded = encode(images.to(vae.dtype), *args, **kwargs)
        if images.dtype != vae.dtype and hasattr(encoded, "latent_dist"):
            encoded.latent_dist = DiagonalGaussianDistribution(encoded.latent_dist.parameters.to(images.dtype))
        elif images.dtype != vae.dtype and hasattr(encoded, "latents"):
            encoded.latents = encoded.latents.to(images.dtype)
        return encoded

    vae.decode, vae.encode = decode_in_vae_precision, encode_in_vae_precision


def _is_same(name: str, other: str) -> bool:
    """Whether two names mean one model."""
    paths = [Path(find_data(path)) for path in (name, other)]
    return name == other or (all(path.exists() for path in paths) and paths[0].resolve() == paths[1].resolve())
