"""From an adapter's folder to a LoRA that every other tool reads, without loss."""

import base64
import io
import logging
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hra_diffusion.errors import ConfigError, ImageError, ModelError
from hra_diffusion.formats import lora
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.folders import base_model, component_folders, public_name, run_settings, tokens_beside
from hra_diffusion.formats.run_folder import SHEET, of_adapter
from hra_diffusion.pipelines.activation import using_hra_adapters
from hra_diffusion.pipelines.components import adapted_components, holders, module_names, offloading_suspended
from hra_diffusion.pipelines.loading import load_hra_weights, name_after, unload_hra_weights
from hra_diffusion.pipelines.models import load_pipeline

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}
logger = logging.getLogger(__name__)

_THUMBNAIL = 256


def export_lora(
    folder: str | Path,
    file: str | Path,
    layout: lora.Layout = "kohya",
    base: Any = None,
    strength: float = 1.0,
    dtype: torch.dtype | str = "fp16",
    *,
    license: str | None = None,
    thumbnail: str | Path | None = None,
    **hub: Any,
) -> Path:
    """Write an HRA adapter as the LoRA that makes the same change to every weight, W H − W = B A.

    Args:
        folder: the adapter's folder, a run's output folder, or a repository on the hub.
        file: a safetensors file to write; a folder for the layout "peft".
        layout: "kohya", which A1111 and ComfyUI read, "diffusers" or "peft".
        base: the model it was made for, as a folder, a name on the hub, or a pipeline, which is given back as it came;
            what the adapter names when left out.
        strength: how far along the geodesic; scaling the LoRA afterwards is not the same.
        dtype: of the tensors: "fp16", "bf16", "fp32", or a torch.dtype.
        license: put into the metadata.
        thumbnail: an image to put into the metadata; the run's before_after.png when left out and there.
        hub: what `huggingface_hub.snapshot_download` takes, for the adapter.

    Returns:
        Where it was written.

    Raises:
        AdapterFileError: there is no adapter, or it does not fit the base.
        ConfigError: a LoRA cannot hold it, or the layout has no place for it.
        ModelError: the base cannot be found.
        OutputError: the file cannot be written; what was there before is intact.
    """
    file, dtype = Path(file), _checked_dtype(dtype)
    _check_place(file, layout)
    made_for = base_model(folder, **hub)
    pipe = load_pipeline(str(base or _named(made_for, folder))) if isinstance(base, str | Path | None) else base
    updates = _updates(pipe, folder, strength, **hub)
    for name, words in tokens_beside(component_folders(folder, **hub)).items():
        logger.warning("The LoRA needs its words %s for %s beside it, as embeddings.", ", ".join(words), name)
    two_text_encoders = getattr(pipe, "text_encoder_2", None) is not None
    training = run_settings(folder)
    about = lora.describe(
        title=file.stem,
        rank=len(updates[0].A),
        family=_family(pipe, two_text_encoders),
        base_model=made_for and public_name(made_for),
        strength=strength,
        trigger=training.get("instance_prompt"),
        license=license,
        thumbnail=_thumbnail(thumbnail, folder),
        prediction_type=pipe.scheduler.config.get("prediction_type"),
        training=training,
    )
    if layout == "peft":
        files = lora.peft_files(updates, dtype, made_for, about)
        write_together({file / name: content for name, content in files.items()})
    elif layout == "kohya":
        names = lora.kohya_names(module_names(pipe), two_text_encoders=two_text_encoders)
        write_together({file: lora.file_bytes(lora.kohya_tensors(updates, dtype, names), about)})
    else:
        write_together({file: lora.file_bytes(lora.diffusers_tensors(updates, dtype), about)})
    return file


def _check_place(file: Path, layout: str) -> None:
    """Refuse a layout that is not known, and a file where it needs a folder or the other way about."""
    if layout not in lora.LAYOUTS:
        raise ConfigError(f"layout must be one of {', '.join(lora.LAYOUTS)}; found {layout!r}.")
    if (file.suffix == ".safetensors") == (layout == "peft"):
        kind = "a folder, with a sub-folder a component" if layout == "peft" else "a .safetensors file"
        raise ConfigError(f"The layout {layout!r} is {kind}: {file} does not look like one.")


def _updates(pipe: Any, folder: str | Path, strength: float, **hub: Any) -> list[lora.Update]:
    """Compute an adapter's updates of a pipeline's weights, all of one rank; the pipeline is given back as it came."""
    restore = [component.restorer() for component in adapted_components(pipe).values()]
    exported = f"{name_after(folder)} exported"  # beside adapters of the pipeline, whatever they are called
    load_hra_weights(pipe, folder, exported, **hub)
    try:
        for component in holders(pipe, exported).values():
            config = component.peft_config[exported]
            if config.bias != "none" or config.modules_to_save:
                raise ConfigError(
                    f"The adapter {folder} trains biases or whole modules, which a LoRA cannot hold: merge it instead."
                )
        with using_hra_adapters(pipe, exported, strength), offloading_suspended(pipe):
            found = [
                lora.update_of(layer, name, module)
                for name, component in holders(pipe, exported).items()
                for module, layer in component.layers().items()
            ]
    finally:
        unload_hra_weights(pipe, exported)
        for each in restore:
            each()
    updates = [update for update in found if update is not None]
    if not updates:
        raise ConfigError(f"At strength {strength} the adapter changes nothing: there is no LoRA to write.")
    rank = max(len(update.A) for update in updates)
    return [lora.with_rank(update, rank) for update in updates]


def _checked_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}; found {dtype!r}.")
    return found


def _named(made_for: str | None, folder: str | Path) -> str:
    if made_for is None:
        raise ModelError(
            f"The adapter {folder} does not say its base: name it (base=…, --pretrained_model_name_or_path)."
        )
    return made_for


def _family(pipe: Any, two_text_encoders: bool) -> Any:
    width = getattr(getattr(pipe, "unet", None), "config", {}).get("cross_attention_dim")
    return "sdxl" if two_text_encoders else "sd2" if width == 1024 else "sd1"


def _thumbnail(path: str | Path | None, folder: str | Path) -> str | None:
    """Return a small image as a data URL; of a run's before_after.png where none is named."""
    source = path or of_adapter(folder, SHEET)
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
