"""Base models: loaded from safetensors alone, and drawn with so that the same seed gives the same picture."""

import inspect
from typing import Any

import torch
from diffusers import AutoModel, DDIMScheduler, DiffusionPipeline
from PIL import Image
from safetensors import SafetensorError

from hra_diffusion.errors import ModelError


def pipeline_class(name: str, revision: str | None = None) -> str:
    """Return the name of the pipeline class that a model folder or a model on the hub is for.

    Raises:
        ModelError: it is neither.
    """
    return _index(name, revision)["_class_name"]


def _index(name: str, revision: str | None) -> dict[str, Any]:
    """Return a model's model_index.json; raises ModelError where there is none."""
    try:
        index: Any = DiffusionPipeline.load_config(name, revision=revision)
        return {"_class_name": index["_class_name"], **index}
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{name!r} is no model folder and no model of the hub that can be reached: a model folder holds "
            "model_index.json beside unet, text_encoder, tokenizer, vae and scheduler."
        ) from error


def load_pipeline(name: str, *, vae: str | None = None, rescale_betas_zero_snr: bool = False, **options: Any) -> Any:
    """Load a pipeline from a folder or the hub, from safetensors files only, in float32, without progress bars.

    Args:
        name: the folder, or the name on the hub.
        vae: another autoencoder in place of the model's own, likewise.
        rescale_betas_zero_snr: let noise go all the way, as the model is then to be trained and drawn with.
        options: passed on to ``DiffusionPipeline.from_pretrained``.

    Raises:
        ModelError: it is no model, or an incomplete or damaged one.
    """
    index = _index(name, options.get("revision"))
    left_out = {part: None for part, kind in index.items() if kind == [None, None]}  # SD 3 without T5
    loading = vae
    try:
        if vae:
            options["vae"] = AutoModel.from_pretrained(vae, use_safetensors=True)
        loading = name
        pipe = DiffusionPipeline.from_pretrained(name, use_safetensors=True, **(left_out | options))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"The model {loading!r} cannot be loaded: {error}") from error
    if rescale_betas_zero_snr:
        _rescale(pipe, name)
    pipe.to(torch.float32)  # diffusers widens what is stored in half precision, transformers does not
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _rescale(pipe: Any, name: str) -> None:
    """Give a pipeline a scheduler of zero terminal signal-to-noise ratio (Lin et al., arXiv 2305.08891)."""
    config = pipe.scheduler.config
    if config.get("prediction_type") not in ("v_prediction", "sample"):
        raise ModelError(
            f"--rescale_betas_zero_snr is for models that predict v or the picture; {name!r} has "
            f"{config.get('prediction_type', 'flow')}, from which no picture follows where all is noise: leave it out."
        )
    known = inspect.signature(type(pipe.scheduler).__init__).parameters
    kind = type(pipe.scheduler) if "rescale_betas_zero_snr" in known else DDIMScheduler
    pipe.scheduler = kind.from_config(config, rescale_betas_zero_snr=True, timestep_spacing="trailing")


def draw(pipe: Any, prompt: str, seed: int, **options: Any) -> Image.Image:
    """Draw one picture. Previews and the command line call this too: the same seed gives the same picture.

    Args:
        pipe: a text-to-image pipeline.
        prompt: what to draw.
        seed: of a CPU generator, so that it means the same on every device.
        options: passed on to the pipeline.
    """
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0]
