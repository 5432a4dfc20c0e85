"""Merging of adapters into the weights of a whole model, for tools without adapter support."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hra_diffusion.adapter.mixture import Combine
from hra_diffusion.dtypes import to_dtype
from hra_diffusion.errors import ConfigError, OutputError
from hra_diffusion.formats.files import replacing, tidy
from hra_diffusion.formats.hub import check_arguments
from hra_diffusion.pipelines.activation import set_hra_adapters
from hra_diffusion.pipelines.bases import find_base
from hra_diffusion.pipelines.components import adapted_components
from hra_diffusion.pipelines.loading import load_hra_weights, name_from_folder
from hra_diffusion.pipelines.models import load_pipeline
from hra_diffusion.pipelines.single_files import is_single_file
from hra_diffusion.pipelines.strengths import StrengthTable
from hra_diffusion.pipelines.tokens import fold_tokens


def merge_hra(
    adapters: Mapping[str, float | StrengthTable] | Mapping[Path, float | StrengthTable],
    output: str | Path,
    *,
    base: str | Path,
    base_options: Mapping[str, Any] | None = None,
    combine: Combine = "mean",
    dtype: torch.dtype | str = torch.float32,
    **hub: Any,
) -> Path:
    """Write a model folder in diffusers' layout, with adapters merged into a base.

    Merging is done in float32 on the CPU, whatever the precision of the files. It needs main memory of about 1.5 times
    the model in float32, and no GPU.

    Args:
        adapters: the strength of every adapter, or its table of them (see `set_hra_adapters`), by its folder or
            repository; a product has their order.
        output: the folder to write, which must not exist or be empty.
        base: the base model's folder, its name on the hub, or a single file: see `load_pipeline`.
        base_options: options of `load_pipeline` for the base: revision, variant, vae; by default those that the
            adapters record.
        combine: "mean" for exp(Σ sᵢ log Hᵢ), "product" for H_first ⋯ H_last, with their strengths.
        dtype: precision of the files: a torch dtype or its name ("fp16", "bf16", "fp32").
        hub: arguments of `huggingface_hub.snapshot_download`, for the adapters.

    Returns:
        The folder.

    Raises:
        ModelError: the base cannot be loaded.
        AdapterFileError: an adapter cannot be read or does not fit.
        ConfigError: the output is a single file, or a strength or mean is impossible.
        MergeError: a merged weight would not be finite.
        OutputError: the folder exists and is not empty, or cannot be written.
    """
    check_arguments(merge_hra, hub)
    output, dtype = Path(output), to_dtype(dtype)
    if output.suffix in (".safetensors", ".ckpt"):
        raise ConfigError(
            f"{output} would be a single file, for which diffusers has no writer: name a folder. Other tools read "
            "the adapter as a LoRA (hra-diffusion export-lora)."
        )
    if not adapters:
        raise ConfigError("Name at least one adapter to merge.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"{output} exists already: choose another folder, so that no model is overwritten.")
    recorded = find_base(adapters, base, base_options, **hub)
    pipe = load_pipeline(
        str(recorded.name), **recorded.options, safety_checker=None if is_single_file(str(recorded.name)) else True
    )
    names = [f"{name_from_folder(folder)} {number}" for number, folder in enumerate(adapters, 1)]
    for name, folder in zip(names, adapters, strict=True):
        load_hra_weights(pipe, folder, name, **hub)
    set_hra_adapters(pipe, names, list(adapters.values()), combine)
    for name, component in adapted_components(pipe).items():
        setattr(pipe, name, component.merge_and_unload(safe_merge=True))
    fold_tokens(pipe)
    tidy(output.parent, output.name)
    with replacing(output) as folder:
        pipe.to(dtype).save_pretrained(folder)
    return output
