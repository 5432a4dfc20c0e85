"""Export of an adapter as an exact LoRA for other tools."""

import base64
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hra_diffusion.dtypes import to_dtype
from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.formats import lora
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.folders import base_model, component_folders, public_name, run_settings, tokens_beside
from hra_diffusion.formats.hub import check_arguments
from hra_diffusion.formats.run_folder import SHEET, result_file
from hra_diffusion.pipelines.activation import using_hra_adapters
from hra_diffusion.pipelines.bases import find_base
from hra_diffusion.pipelines.components import (
    adapted_components,
    holders,
    module_names,
    offloading_suspended,
    output_widths,
    transformer_class,
)
from hra_diffusion.pipelines.loading import load_hra_weights, name_from_folder, unload_hra_weights
from hra_diffusion.pipelines.models import load_pipeline
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.pipelines.strengths import StrengthTable

logger = logging.getLogger(__name__)

_THUMBNAIL = 256


def export_lora(
    adapter: str | Path,
    output: str | Path,
    *,
    base: str | Path | Pipeline | None = None,
    base_options: Mapping[str, Any] | None = None,
    layout: lora.Layout = "kohya",
    strength: float | StrengthTable = 1.0,
    dtype: torch.dtype | str = "fp16",
    license: str | None = None,
    thumbnail: str | Path | None = None,
    **hub: Any,
) -> Path:
    """Write an HRA adapter as the LoRA with the same change of every weight, W H − W = B A.

    Args:
        adapter: the adapter's folder, a run's output folder, or a repository on the hub.
        output: a safetensors file to write; a folder for the layout "peft".
        base: the base model, as a folder, a name on the hub, or a pipeline, which is unchanged afterwards; by default
            the one named by the adapter.
        base_options: options of `load_pipeline` for the base: revision, variant, vae; by default those that the adapter
            records.
        layout: "kohya", which A1111 and ComfyUI read, "diffusers" or "peft".
        strength: position on the geodesic, or a table of those of components and blocks (see `set_hra_adapters`);
            scaling the LoRA afterwards is not the same.
        dtype: precision of the tensors: a torch dtype or its name ("fp16", "bf16", "fp32").
        license: a license for the metadata.
        thumbnail: an image for the metadata; the run's before_after.png by default, if it has one.
        hub: arguments of `huggingface_hub.snapshot_download`, for the adapter.

    Returns:
        The path of the output.

    Raises:
        AdapterFileError: there is no adapter, or it does not fit the base.
        ConfigError: a LoRA or the layout cannot hold the adapter.
        ModelError: the base cannot be found.
        OutputError: the file cannot be written; an existing one is intact.
    """
    check_arguments(export_lora, hub)
    output, dtype = Path(output), to_dtype(dtype)
    _check_layout(output, layout)
    named_base = base_model(adapter, **hub)
    if base is None or isinstance(base, str | Path):
        recorded = find_base([adapter], base, base_options, **hub)
        pipe = load_pipeline(str(recorded.name), **recorded.options)
    else:
        pipe = base
    updates = _updates(pipe, adapter, strength, **hub)
    for name, words in tokens_beside(component_folders(adapter, **hub)).items():
        logger.warning("The LoRA needs its words %s for %s beside it, as embeddings.", ", ".join(words), name)
    training = run_settings(adapter)
    metadata = lora.describe(
        title=output.stem,
        rank=len(updates[0].A),
        family=_family(pipe),
        base_model=named_base and public_name(named_base),
        strength=strength,
        is_dora=any(update.magnitude is not None for update in updates),
        trigger=training.get("instance_prompt"),
        license=license,
        thumbnail=_thumbnail(thumbnail, adapter),
        prediction_type=pipe.scheduler.config.get("prediction_type"),
        training=training,
    )
    if layout == "peft":
        files = lora.peft_files(updates, dtype, named_base, metadata)
        write_together({output / name: content for name, content in files.items()})
        return output
    kohya = layout == "kohya"
    tensors = _kohya_tensors(pipe, updates, dtype) if kohya else lora.diffusers_tensors(updates, dtype)
    write_together({output: lora.file_bytes(tensors, metadata)})
    return output


def _check_layout(output: Path, layout: str) -> None:
    """Refuse an unknown layout, a file for the layout "peft", and a folder for the others."""
    if layout not in lora.LAYOUTS:
        raise ConfigError(f"layout must be one of {', '.join(lora.LAYOUTS)}; found {layout!r}.")
    if (output.suffix == ".safetensors") == (layout == "peft"):
        kind = "a folder, with a sub-folder a component" if layout == "peft" else "a .safetensors file"
        raise ConfigError(f"The layout {layout!r} is {kind}: {output} does not look like one.")


def _updates(pipe: Pipeline, adapter: str | Path, strength: float | StrengthTable, **hub: Any) -> list[lora.Update]:
    """Compute an adapter's updates of a pipeline's weights, all of one rank; the pipeline is unchanged afterwards."""
    restorers = [component._restorer() for component in adapted_components(pipe).values()]
    exported = f"{name_from_folder(adapter)} exported"  # not the name of an adapter in the pipeline
    load_hra_weights(pipe, adapter, exported, **hub)
    try:
        for component in holders(pipe, exported).values():
            config = component.peft_config[exported]
            if config.bias != "none" or config.modules_to_save:
                raise ConfigError(
                    f"The adapter {adapter} trains biases or whole modules, which a LoRA cannot hold: merge it instead."
                )
        with using_hra_adapters(pipe, exported, strength), offloading_suspended(pipe):
            computed = [
                lora.update_of(layer, name, module)
                for name, component in holders(pipe, exported).items()
                for module, layer in component.adapted_layers().items()
            ]
    finally:
        unload_hra_weights(pipe, exported)
        for restore in restorers:
            restore()
    updates = [update for update in computed if update is not None]
    if not updates:
        raise ConfigError(f"At strength {strength} the adapter changes nothing: there is no LoRA to write.")
    rank = max(len(update.A) for update in updates)
    return [lora.with_rank(update, rank) for update in updates]


def _kohya_tensors(pipe: Pipeline, updates: list[lora.Update], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    modules, transformer = module_names(pipe), transformer_class(pipe)
    names = lora.kohya_names(modules, two_text_encoders=_has_two_text_encoders(pipe), transformer=transformer)
    swapped = lora.swapped_layers(modules, transformer)
    tensors = lora.kohya_tensors(updates, dtype, names, output_widths(pipe), swapped)
    if any(name.endswith(lora.KOHYA_MAGNITUDE) for name in tensors):
        logger.warning("diffusers ignores the magnitudes in kohya's layout (dora_scale): use its own layout there.")
    return tensors


def _has_two_text_encoders(pipe: Pipeline) -> bool:
    return getattr(pipe, "text_encoder_2", None) is not None


def _family(pipe: Pipeline) -> str:
    if "unet" not in pipe.components:
        return type(pipe).__name__
    width = pipe.unet.config.get("cross_attention_dim")
    return "sdxl" if _has_two_text_encoders(pipe) else "sd2" if width == 1024 else "sd1"


def _thumbnail(path: str | Path | None, adapter: str | Path) -> str | None:
    """Return a small image as a data URL: by default the run's before_after.png, if it has one."""
    source = path or result_file(adapter, SHEET)
    if source is None:
        return None
    try:
        with Image.open(source) as image:
            small = image.convert("RGB")
    except OSError as error:
        raise ImageError(f"The thumbnail {source} cannot be read as an image: {error}") from error
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
