"""Checkpoints in a single file: the marks in their header, their configuration, and their weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.loaders.single_file_utils import fetch_diffusers_config
from packaging.version import Version
from safetensors import safe_open

from hra_diffusion.errors import ModelError

DTYPE_ARGUMENT = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"
"""The argument of ``from_pretrained`` with the precisions, which diffusers 0.40 renamed."""
_PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_LONGEST_VALUE = 100
"""Characters of a value of the metadata that are read."""
_OTHER_COMPONENTS = ("vae.", "first_stage_model.", "text_encoders.", "cond_stage_model.", "conditioner.")
"""Prefixes of autoencoders and text encoders in single files of whole models."""
_PREDICTION_TYPES = {
    "v": "v_prediction",
    "v_prediction": "v_prediction",
    "v-prediction": "v_prediction",
    "eps": "epsilon",
    "epsilon": "epsilon",
}
_ARCHITECTURES = {"stable-diffusion-v2-512": "epsilon", "stable-diffusion-v2-768-v": "v_prediction"}
_SD2_WEIGHT = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
_SD2_BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@dataclass(frozen=True)
class Header:
    """The header of a single file, without its tensors."""

    shapes: dict[str, tuple[int, ...]]
    prediction_type: str | None
    """The prediction type that the file names: epsilon or v_prediction; None if it names none."""
    zero_snr: bool
    """Whether the file is marked as trained with zero terminal signal-to-noise ratio."""


def is_single_file(name: str) -> bool:
    """Whether a model's name is that of a file with weights."""
    return Path(name).suffix.lower() in (".safetensors", *_PICKLED)


def read_header(file: str) -> Header:
    """Read the marks of a single file: keys ``v_pred`` and ``ztsnr``, and the metadata of ModelSpec.

    Raises:
        ModelError: the file is missing, pickled or damaged.
    """
    if Path(file).suffix.lower() in _PICKLED:
        raise ModelError(f"{file!r} is pickled, which is never read: convert it to safetensors first.")
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
            metadata = opened.metadata() or {}
    except Exception as error:  # of safetensors, for damaged files
        raise ModelError(f"The model {file!r} cannot be read: {error}") from error
    prediction_type = "v_prediction" if "v_pred" in shapes else _named_prediction_type(metadata)
    return Header(shapes, prediction_type, "ztsnr" in shapes)


def guess_config(file: str) -> str:
    """Return the hub model with the configuration of a single file, by the names and shapes of its tensors.

    Raises:
        ModelError: the file is missing, pickled or damaged.
    """
    header = read_header(file)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in header.shapes.items()}
    config = fetch_diffusers_config(tensors)["pretrained_model_name_or_path"]
    is_sd2 = config.startswith("stabilityai/stable-diffusion-2-1")
    if is_sd2 and (header.prediction_type or _sd2_prediction_type(file, header)) == "epsilon":
        return "stabilityai/stable-diffusion-2-1-base"  # 512 px; the other one has 768
    return config


def load_single_file(file: str, config: str, index: dict[str, Any], dtype: torch.dtype, options: dict[str, Any]) -> Any:
    """Load a checkpoint with diffusers' converter, the autoencoder in float32.

    Weights whose precision is right stay in the mapped file: a copy in float32 would need twice its size.

    Args:
        file: the checkpoint.
        config: the model folder or hub model with its configuration.
        index: the contents of this configuration's model_index.json.
        dtype: precision of the components except the autoencoder.
        options: arguments of ``from_single_file``.

    Raises:
        ModelError: the file has a noise process that this package does not know.
        ValueError: weights are missing.
    """
    names = read_header(file).shapes.keys()
    if "edm_vpred.sigma_max" in names:
        raise ModelError(
            f"{file!r} is an EDM model with v-prediction (CosXL), which cannot be used here: choose a model that "
            "predicts noise, v or flow."
        )
    # Most files of FLUX.1 and later families hold the transformer alone.
    if "transformer" in index and not any(name.startswith(_OTHER_COMPONENTS) for name in names):
        return _with_transformer(file, config, index, dtype, options)
    vae_kind = getattr(diffusers, str(index.get("vae", [None, None])[1]), None)
    if "vae" not in options and hasattr(vae_kind, "from_single_file"):
        options = options | {"vae": load_vae_file(file, config, vae_kind)}
    kind: Any = getattr(diffusers, index["_class_name"])
    pipe = _from_single_file(kind, file, config, torch_dtype=dtype, **options)
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module):
            _check_complete(component, f"the {name}", config)
            if component.dtype != (wanted := torch.float32 if name == "vae" else dtype):
                component.to(wanted)
    pipe.register_to_config(_name_or_path=file)
    return pipe


def _with_transformer(
    file: str, config: str, index: dict[str, Any], dtype: torch.dtype, options: dict[str, Any]
) -> Any:
    """Load a transformer from a single file, and the other components of a whole model.

    Raises:
        ModelError: the configuration's model lacks their weights.
        ValueError: weights of the transformer are missing.
    """
    kind = getattr(diffusers, index["transformer"][1])
    transformer = _from_single_file(kind, file, config, torch_dtype=dtype, subfolder="transformer")
    _check_complete(transformer, "the transformer", config)
    options = options | {"transformer": transformer, DTYPE_ARGUMENT: {"default": dtype, "vae": torch.float32}}
    try:
        pipe = DiffusionPipeline.from_pretrained(config, use_safetensors=True, **options)
    except OSError as error:
        raise ModelError(
            f"{file!r} holds a transformer alone, and {config!r} lacks the other components ({error}): name a whole "
            "model of its family, with its weights, as --pretrained_config_name_or_path (config=…)."
        ) from error
    pipe.register_to_config(_name_or_path=file)
    return pipe


def load_vae_file(file: str, config: str, kind: Any = AutoencoderKL) -> Any:
    """Load an autoencoder in float32 from a file of its own or of a whole model, with a model's configuration.

    Raises:
        ModelError: the file is missing, pickled or damaged.
        ValueError: weights are missing.
    """
    read_header(file)
    vae = _from_single_file(kind, file, config, torch_dtype=torch.float32, subfolder="vae")
    _check_complete(vae, "the autoencoder", config)
    return vae


def _from_single_file(kind: Any, file: str, config: str, **options: Any) -> Any:
    try:
        return kind.from_single_file(file, config=config, **options)
    except NotImplementedError as error:  # a cast of weights on the meta device
        raise ValueError(f"it lacks weights that {config} has.") from error


def _check_complete(component: torch.nn.Module, name: str, config: str) -> None:
    """Raise ValueError if weights are left on the meta device: the file lacks them."""
    if any(weight.is_meta for weight in component.parameters()):
        raise ValueError(f"it lacks weights of {name} that {config} has.")


def _named_prediction_type(metadata: dict[str, str]) -> str | None:
    """Return the prediction type in a file's metadata, if any (github.com/Stability-AI/ModelSpec)."""
    named = metadata.get("modelspec.prediction_type", "")[:_LONGEST_VALUE].strip().lower()
    architecture = metadata.get("modelspec.architecture", "")[:_LONGEST_VALUE].strip().lower()
    return _PREDICTION_TYPES.get(named) or _ARCHITECTURES.get(architecture)


def _sd2_prediction_type(file: str, header: Header) -> str:
    """Return the prediction type of a Stable Diffusion 2 without marks, by the spread of a bias, as ComfyUI does."""
    if header.shapes.get(_SD2_WEIGHT, (0,))[-1] != 1024 or _SD2_BIAS not in header.shapes:
        return "v_prediction"
    with safe_open(file, framework="pt") as opened:
        return "v_prediction" if opened.get_tensor(_SD2_BIAS).float().std(correction=0) > 0.09 else "epsilon"
