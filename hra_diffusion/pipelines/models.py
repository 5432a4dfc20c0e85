"""Base models, loaded from safetensors alone, and images that depend on the seed alone."""

import hashlib
import inspect
import re
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoModel, DDIMScheduler, DiffusionPipeline
from diffusers.loaders.single_file_utils import (
    SingleFileComponentError,
    fetch_diffusers_config,
    load_single_file_checkpoint,
)
from PIL import Image
from safetensors import SafetensorError

from hra_diffusion.dtypes import to_dtype
from hra_diffusion.errors import ModelError
from hra_diffusion.pipelines.clip_skip import set_clip_skip
from hra_diffusion.pipelines.protocol import Pipeline

_PICKLED = (".ckpt", ".pt", ".pth", ".bin")


def pipeline_class(name: str, revision: str | None = None) -> str:
    """Return the name of the pipeline class of a model folder, a model on the hub or a single file.

    Raises:
        ModelError: it is none of them.
    """
    return _index(model_config(name), revision)["_class_name"]


def _index(name: str, revision: str | None) -> dict[str, Any]:
    """Return the contents of a model's model_index.json; raises ModelError if it has none."""
    try:
        index: Any = DiffusionPipeline.load_config(name, revision=revision)
        return {"_class_name": index["_class_name"], **index}
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{name!r} is no model folder and no model of the hub that can be reached: a model folder holds "
            "model_index.json beside unet, text_encoder, tokenizer, vae and scheduler. A single file needs a folder "
            "beside it with its name, without .safetensors, and the model's JSON files."
        ) from error


def load_pipeline(
    name: str,
    *,
    config: str | None = None,
    vae: str | None = None,
    rescale_betas_zero_snr: bool = False,
    clip_skip: int | None = None,
    dtype: torch.dtype | str = torch.float32,
    **options: Any,
) -> Pipeline:
    """Load a pipeline from a folder, the hub or a single file, without progress bars; pickled files are refused.

    Args:
        name: the folder, the name on the hub, or a checkpoint in one file, in the layout of the original code.
        config: the model configuration of a single file: a model folder, of which the JSON files suffice, or a name on
            the hub. By default it is the folder beside the file with the file's name (``sd15`` for
            ``sd15.safetensors``), or diffusers' guess of a model on the hub.
        vae: another autoencoder instead of the model's own: a folder or a name on the hub.
        rescale_betas_zero_snr: rescale the noise schedule to zero terminal signal-to-noise ratio, for training and
            generating.
        clip_skip: number of CLIP's last layers to skip by default; the layer before the last is 1.
        dtype: precision, whatever the files have: a torch dtype or its name ("fp16", "bf16", "fp32"); the autoencoder
            is in float32, since SDXL's overflows in float16.
        options: arguments of ``DiffusionPipeline.from_pretrained``.

    Raises:
        ConfigError: the dtype is not supported.
        ModelError: it is no model, or an incomplete or damaged one.
    """
    dtype, config = to_dtype(dtype), config or model_config(name)
    index = _index(config, options.get("revision"))
    left_out = {part: None for part, kind in index.items() if kind == [None, None]}  # SD 3 without T5
    pipe: Any
    loading = vae
    try:
        if vae:
            options["vae"] = AutoModel.from_pretrained(vae, use_safetensors=True)
        loading = name
        if _is_file(name):
            pipe = _from_single_file(name, config, getattr(diffusers, index["_class_name"]), left_out | options)
            for part, component in pipe.components.items():
                if isinstance(component, torch.nn.Module):
                    component.to(torch.float32 if part == "vae" else dtype)
        else:
            options["dtype"] = {"default": dtype, "vae": torch.float32}
            pipe = DiffusionPipeline.from_pretrained(name, use_safetensors=True, **(left_out | options))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, SingleFileComponentError) as error:
        raise ModelError(f"The model {loading!r} cannot be loaded: {error}") from error
    if rescale_betas_zero_snr:
        _rescale(pipe, name)
    set_clip_skip(pipe, clip_skip)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".safetensors", *_PICKLED)


def model_config(name: str) -> str:
    """Return the model folder or hub model with a model's configuration; for a single file, it is another one.

    Raises:
        ModelError: a single file is missing, pickled or damaged.
    """
    if not _is_file(name):
        return name
    if Path(name).suffix in _PICKLED:
        raise ModelError(f"{name!r} is pickled, which is never read: convert it to safetensors first.")
    beside = Path(name).with_suffix("")
    if (beside / "model_index.json").is_file():
        return str(beside)
    try:
        return fetch_diffusers_config(load_single_file_checkpoint(name))["pretrained_model_name_or_path"]
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"The model {name!r} cannot be read: {error}") from error


def _from_single_file(file: str, config: str, kind: Any, options: dict[str, Any]) -> Any:
    """Load a checkpoint with diffusers' converter, and refuse weights left on the meta device: they are missing."""
    pipe = kind.from_single_file(file, config=config, **options)
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module) and any(p.is_meta for p in component.parameters()):
            raise ValueError(f"it lacks weights of the {name} that {config} has.")
    pipe.register_to_config(_name_or_path=file)
    return pipe


def _rescale(pipe: Pipeline, name: str) -> None:
    """Give a pipeline a scheduler of zero terminal signal-to-noise ratio (Lin et al., arXiv 2305.08891)."""
    config = pipe.scheduler.config
    if config.get("prediction_type") not in ("v_prediction", "sample"):
        raise ModelError(
            f"--rescale_betas_zero_snr is for models that predict v or the image; {name!r} has "
            f"{config.get('prediction_type', 'flow')}, which determines no image at pure noise: leave it out."
        )
    known = inspect.signature(type(pipe.scheduler).__init__).parameters
    kind = type(pipe.scheduler) if "rescale_betas_zero_snr" in known else DDIMScheduler
    pipe.scheduler = kind.from_config(config, rescale_betas_zero_snr=True, timestep_spacing="trailing")


def generate_image(pipe: Pipeline, prompt: str, seed: int, **options: Any) -> Image.Image:
    """Generate one image, as validation and the command line do: the same seed gives the same image.

    Args:
        pipe: a text-to-image pipeline.
        prompt: the prompt.
        seed: of a CPU generator, so that it means the same on every device.
        options: arguments of the pipeline.
    """
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0]


def image_name(prompt: str, seed: int) -> str:
    """Return the file name of an image with its prompt and seed; other prompts have other names."""
    slug = re.sub(r"\W+", "-", prompt.lower()).strip("-")
    short = slug.encode()[:80].decode(errors="ignore") or "image"  # file names are measured in bytes
    if short.replace("-", " ") != prompt:
        short += f"-{hashlib.blake2b(prompt.encode(), digest_size=4).hexdigest()}"
    return f"{short}-{seed}.png"
