"""A whole model with adapters multiplied into its weights, for whatever knows nothing of adapters."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from hra_diffusion.errors import ConfigError, OutputError
from hra_diffusion.formats.files import replacing
from hra_diffusion.pipelines.activation import set_hra_adapters
from hra_diffusion.pipelines.components import adapted_components
from hra_diffusion.pipelines.loading import load_hra_weights, name_after
from hra_diffusion.pipelines.models import load_pipeline
from hra_diffusion.pipelines.tokens import fold_tokens


def merge_hra(
    base: str | Path,
    output: str | Path,
    adapters: Mapping[str, float],
    combine: Literal["lie", "product"] = "lie",
    dtype: torch.dtype = torch.float32,
    **hub: Any,
) -> Path:
    """Write a model folder in diffusers' layout, with adapters merged into a base.

    Merging is done in float32, whatever the precision of the files.

    Args:
        base: the base model's folder, its name on the hub, or a single file: see `load_pipeline`.
        output: the folder to write, which must not exist or be empty.
        adapters: the strength of each adapter, by its folder or repository; a product has their order.
        combine: "lie" for their mean exp(Σ sᵢ log Hᵢ), "product" for H_first ⋯ H_last, each with its strength.
        dtype: precision of the files.
        hub: what `huggingface_hub.snapshot_download` takes, for the adapters.

    Returns:
        The folder.

    Raises:
        ModelError: the base cannot be loaded.
        AdapterFileError: an adapter cannot be read or does not fit.
        ConfigError: the output is to be a single file, or a strength or mean cannot be had.
        MergeError: a merged weight would not be finite.
        OutputError: the folder is there already, or cannot be written.
    """
    output = Path(output)
    if output.suffix in (".safetensors", ".ckpt"):
        raise ConfigError(
            f"{output} would be a single file, for which diffusers has no writer: name a folder. Other tools read "
            "the adapter as a LoRA (hra-diffusion export-lora)."
        )
    if not adapters:
        raise ConfigError("Name at least one adapter to merge.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise OutputError(f"{output} exists already: choose another folder, so that no model is overwritten.")
    pipe = load_pipeline(str(base))
    names = [f"{name_after(folder)} {at}" for at, folder in enumerate(adapters, 1)]
    for name, folder in zip(names, adapters, strict=True):
        load_hra_weights(pipe, folder, name, **hub)
    set_hra_adapters(pipe, names, list(adapters.values()), combine)
    for name, component in adapted_components(pipe).items():
        setattr(pipe, name, component.merge_and_unload(safe_merge=True))
    fold_tokens(pipe)
    with replacing(output) as folder:
        pipe.to(dtype).save_pretrained(folder)
    return output
