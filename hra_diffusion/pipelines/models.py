"""Base models, loaded from safetensors alone, and images that depend on the seed alone."""

import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoModel, DiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from PIL import Image
from safetensors import SafetensorError

from hra_diffusion.dtypes import to_dtype
from hra_diffusion.errors import AdapterFileError, ConfigError, ModelError
from hra_diffusion.formats.hub import local_folder
from hra_diffusion.formats.reading import read_json
from hra_diffusion.formats.weight_files import explain_weights
from hra_diffusion.pipelines.clip_skip import set_clip_skip
from hra_diffusion.pipelines.components import (
    denoiser_name,
    set_base_options,
    text_encoders,
    tokenizer_name,
    tokenizer_of,
)
from hra_diffusion.pipelines.kinds import KINDS, call_options
from hra_diffusion.pipelines.missing_packages import check_packages
from hra_diffusion.pipelines.noise_schedule import rescale_to_zero_snr, set_prediction_type
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.pipelines.single_files import (
    DTYPE_ARGUMENT,
    guess_config,
    is_single_file,
    load_single_file,
    load_vae_file,
    read_header,
)
from hra_diffusion.resources import recorded_path, relative_to

logger = logging.getLogger(__name__)

_MODULAR_INDEX = "modular_model_index.json"
_LONGEST_REASON = 600
"""Characters of a library's error message that are repeated."""


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
        if modular := _modular_class(name, revision):
            raise ModelError(
                f"{name!r} is a modular pipeline, {modular}, which cannot be used here: use a model whose folder holds "
                "model_index.json."
            ) from error
        raise ModelError(
            f"{name!r} is no model folder{relative_to(name)} and no model of the hub that can be reached: a model "
            "folder holds model_index.json beside unet, text_encoder, tokenizer, vae and scheduler. A single file "
            "needs a folder beside it with its name, without .safetensors, and the model's JSON files."
        ) from error


def _modular_class(name: str, revision: str | None) -> str | None:
    """Return the class of a modular pipeline of diffusers, which has another index; None for anything else."""
    try:
        return read_json(local_folder(name, None, [_MODULAR_INDEX], revision=revision) / _MODULAR_INDEX)["_class_name"]
    except (AdapterFileError, KeyError):
        return None


def load_pipeline(
    name: str,
    *,
    config: str | None = None,
    vae: str | None = None,
    prediction_type: str | None = None,
    rescale_betas_zero_snr: bool = False,
    clip_skip: int | None = None,
    safety_checker: Any = None,
    dtype: torch.dtype | str = torch.float32,
    **options: Any,
) -> Pipeline:
    """Load a pipeline from a folder, the hub or a single file, without progress bars; pickled files are refused.

    Args:
        name: the folder, the name on the hub, or a checkpoint in one file, in the layout of the original code.
        config: the model configuration of a single file: a model folder, of which the JSON files suffice, or a name on
            the hub. By default it is the folder beside the file with the file's name (``sd15`` for
            ``sd15.safetensors``), or diffusers' guess of a model on the hub.
        vae: another autoencoder instead of the model's own: a folder or a name on the hub, of an autoencoder or of a
            model with one, or a single file.
        prediction_type: "epsilon", "v_prediction" or "sample", instead of the scheduler's and of a single file's marks.
        rescale_betas_zero_snr: rescale the noise schedule to zero terminal signal-to-noise ratio, for training and
            generating. A single file with the marks ``v_pred`` and ``ztsnr`` is always rescaled.
        clip_skip: number of CLIP's last layers to skip by default; the layer before the last is 1.
        safety_checker: None, which generates all images; True for the model's own, or a checker: it replaces images by
            black ones.
        dtype: precision, whatever the files have: a torch dtype or its name ("fp16", "bf16", "fp32"); the autoencoder
            is in float32, since SDXL's overflows in float16.
        options: arguments of ``DiffusionPipeline.from_pretrained``.

    Raises:
        ConfigError: the dtype or the prediction type is not supported, or a config is for no single file.
        ModelError: it is no model, or an incomplete or damaged one.
    """
    if config and not is_single_file(name):
        raise ConfigError(
            f"--pretrained_config_name_or_path is for a model in a single file, not {name!r}: leave it out."
        )
    paths = {option: path and recorded_path(path) for option, path in (("vae", vae), ("config", config))}
    dtype, config = to_dtype(dtype), config or model_config(name)
    index = _index(config, options.get("revision"))
    check_packages(name, index)
    left_out: dict[str, Any] = {part: None for part, kind in index.items() if kind == [None, None]}  # SD 3 without T5
    left_out |= _defaults(index["_class_name"], safety_checker, is_checked="safety_checker" in index)
    pipe: Any
    loading = vae
    try:
        if vae:
            options["vae"] = _load_vae(vae, config)
        loading = name
        if is_single_file(name):
            pipe = load_single_file(name, config, index, dtype, left_out | options)
        else:
            options[DTYPE_ARGUMENT] = {"default": dtype, "vae": torch.float32}
            pipe = DiffusionPipeline.from_pretrained(name, use_safetensors=True, **(left_out | options))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, SingleFileComponentError) as error:
        revision = options.get("revision") if loading == name else None
        raise ModelError(
            f"The model {loading!r}{relative_to(str(loading))} cannot be loaded: "
            f"{explain_weights(str(loading), revision) or str(error)[:_LONGEST_REASON]}"
        ) from error
    except AttributeError as error:  # the pipeline's constructor reads the autoencoder's own settings
        if not vae:
            raise
        raise ModelError(
            f"The autoencoder {vae!r} is an {type(options['vae']).__name__}, of no use to a {index['_class_name']}: "
            "use an autoencoder of the model's own family."
        ) from error
    _complete_tokenizers(pipe)
    _check_channels(pipe, name)
    if vae:
        _report_scale(pipe, vae, config)
    _set_noise_schedule(pipe, name, prediction_type, rescale_betas_zero_snr)
    set_clip_skip(pipe, clip_skip)
    noise = {"prediction_type": prediction_type, "rescale_betas_zero_snr": rescale_betas_zero_snr}
    set_base_options(pipe, options | noise | paths | {"clip_skip": clip_skip})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _defaults(kind: str, safety_checker: Any, is_checked: bool) -> dict[str, Any]:
    """Return options that let every command generate the same images: no watermark, and a checker on demand only."""
    defaults: dict[str, Any] = {"add_watermarker": False} if kind.startswith("StableDiffusionXL") else {}
    if is_checked and safety_checker is None:
        return defaults | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return defaults if safety_checker in (None, True) else defaults | {"safety_checker": safety_checker}


def model_config(name: str) -> str:
    """Return the model folder or hub model with a model's configuration; for a single file, it is another one.

    Raises:
        ModelError: a single file is missing, pickled or damaged.
    """
    if not is_single_file(name):
        return name
    beside = Path(name).with_suffix("")
    if (beside / "model_index.json").is_file():
        read_header(name)
        return str(beside)
    return guess_config(name)


def _load_vae(vae: str, config: str) -> Any:
    """Load another autoencoder in float32: from a folder, the hub, a whole model or a single file."""
    if is_single_file(vae):
        return load_vae_file(vae, config)
    try:
        return AutoModel.from_pretrained(vae, use_safetensors=True)
    except (OSError, ValueError) as error:
        try:  # a whole model
            return AutoModel.from_pretrained(vae, subfolder="vae", use_safetensors=True)
        except (OSError, ValueError):
            raise error from None


def _complete_tokenizers(pipe: Pipeline) -> None:
    """Limit the maximum length of tokenizers to that of their text encoders.

    Raises:
        ModelError: a text encoder has no tokenizer.
    """
    for name, model in text_encoders(pipe).items():
        if tokenizer_of(pipe, name) is None:
            raise ModelError(
                f"The model has a {name} and no {tokenizer_name(name)}: add the folder {tokenizer_name(name)} of the "
                "original model."
            )
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if longest and tokenizer_of(pipe, name).model_max_length > longest:
            tokenizer_of(pipe, name).model_max_length = longest


def _check_channels(pipe: Pipeline, name: str) -> None:
    """Refuse a text-to-image model whose denoiser takes more or fewer channels than its autoencoder gives."""
    kind = KINDS.get(type(pipe).__name__)
    if kind is None:
        return
    denoiser = denoiser_name(pipe)
    channels = pipe.vae.config.get("latent_channels") or pipe.vae.config.z_dim
    taken, given = getattr(pipe, denoiser).config.in_channels, kind.packing * channels
    if taken == given:
        return
    if taken == 2 * given + 1:
        raise ModelError(
            f"{name!r} is an inpainting model: its {denoiser} takes {taken} channels, of which {given} are the latent. "
            "Use the text-to-image model from which it was made."
        )
    raise ModelError(
        f"The {denoiser} of {name!r} takes latents of {taken} channels, and the autoencoder gives {given}: use an "
        "autoencoder of the model's own family."
    )


def _report_scale(pipe: Pipeline, vae: str, config: str) -> None:
    """Warn of another autoencoder with another scaling factor than the model's own, if that can be read."""
    try:
        settings: Any = type(pipe.vae).load_config(config, subfolder="vae")
    except (OSError, ValueError):
        return
    model_scale, scale = settings.get("scaling_factor"), pipe.vae.config.get("scaling_factor")
    if model_scale is not None and model_scale != scale:
        logger.warning(
            "The autoencoder %r has the scaling_factor %s, and the model's own has %s: latents are scaled by %s. The "
            "images are wrong if the autoencoder is not of the model's family.",
            vae,
            scale,
            model_scale,
            scale,
        )


def _set_noise_schedule(pipe: Pipeline, name: str, prediction_type: str | None, zero_snr: bool) -> None:
    """Follow the given prediction type, or else the marks of a single file."""
    header = read_header(name) if is_single_file(name) else None
    chosen = prediction_type or (header and header.prediction_type)
    if chosen:
        set_prediction_type(pipe, chosen, name)
    marked = header is not None and header.zero_snr and chosen == "v_prediction"
    if zero_snr or marked:
        rescale_to_zero_snr(pipe, name)


def generate_image(pipe: Pipeline, prompt: str | None, seed: int, **options: Any) -> Image.Image:
    """Generate one image, as validation and the command line do: the same seed gives the same image.

    Args:
        pipe: a text-to-image pipeline.
        prompt: the prompt, as the pipeline reads it; None with embeddings of `prompt_options`.
        seed: of a CPU generator, so that it means the same on every device.
        options: arguments of the pipeline, by the names of Stable Diffusion's; a guidance_scale that is None is the
            default of the pipeline's kind.
    """
    generator = torch.Generator().manual_seed(seed)
    return images_of(pipe(prompt=prompt, generator=generator, **call_options(pipe, options)))[0]


def images_of(output: Any) -> list[Any]:
    """Return the images of a pipeline's output, with a warning of images blackened by its safety checker."""
    if count := sum(map(bool, getattr(output, "nsfw_content_detected", None) or ())):
        logger.warning(
            "The pipeline's safety checker has replaced %s of %s images by black ones: use another prompt or seed, or "
            "load the pipeline without the checker, as load_pipeline does.",
            count,
            len(output.images),
        )
    return output.images


def image_name(prompt: str, seed: int) -> str:
    """Return the file name of an image with its prompt and seed; other prompts have other names."""
    slug = re.sub(r"\W+", "-", prompt.lower()).strip("-")
    short = slug.encode()[:80].decode(errors="ignore") or "image"  # file names are measured in bytes
    if short.replace("-", " ") != prompt:
        digest = hashlib.blake2b(prompt.encode(errors="surrogatepass"), digest_size=4)
        short += f"-{digest.hexdigest()}"
    return f"{short}-{seed}.png"
