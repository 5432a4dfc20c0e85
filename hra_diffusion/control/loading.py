"""Loading and saving of controls.

    canny/
    ├── unet/                adapter_config.json, adapter_model.safetensors: an ordinary adapter; or transformer/
    └── condition_encoder/   config.json with the annotator, diffusion_pytorch_model.safetensors

In a run's output folder the control is the folder ``adapter``.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hra_diffusion.control.condition_inputs import condition_input
from hra_diffusion.control.encoder import ConditionEncoder
from hra_diffusion.control.guiding import Control
from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.files import replacing, write_together
from hra_diffusion.formats.folders import ENCODER, ENCODER_FILES, component_folders, find_encoder
from hra_diffusion.formats.peft import save_adapter
from hra_diffusion.formats.reading import read_json
from hra_diffusion.formats.tensors import read_tensors
from hra_diffusion.pipelines import unload_hra_weights
from hra_diffusion.pipelines.components import base_files_of, denoiser_name, offloading_suspended
from hra_diffusion.pipelines.loading import load_hra_weights_inactive
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.text import shorten

_MAX_SIZES = {"out_channels": 8192, "scale_factor": 64}
"""Limits of an encoder's settings: larger ones could exhaust the memory."""
_DENOISERS = {"unet": "UNet", "transformer": "transformer"}
"""Components that a control may adapt."""


def load_hra_control(
    pipe: Pipeline, folder: str | Path, adapter_name: str = "control", *, subfolder: str | None = None, **hub: Any
) -> Control:
    """Load a control into a pipeline, inactive until :meth:`Control.guiding`.

    Active adapters stay active.

    >>> control = load_hra_control(pipe, "outputs/canny")
    >>> with control.guiding(pipe, image):
    ...     pipe("a cat on the beach").images[0]

    Args:
        pipe: Stable Diffusion 1, 2, XL or FLUX.2: text to image, image to image, inpainting.
        folder: the control's folder, the output folder of its training run, or a repository on the hub.
        adapter_name: the adapter's name in the denoiser.
        subfolder: the control's folder within `folder`.
        hub: arguments of `huggingface_hub.snapshot_download`: revision, token, cache_dir, …

    Raises:
        AdapterFileError: the control is missing, damaged or for another model; the pipeline is unchanged.
        ConfigError: the pipeline has an adapter of this name.
        ModelError: the pipeline's denoiser takes no control.
    """
    target = condition_input(getattr(pipe, denoiser_name(pipe)))
    encoder = read_encoder(folder, subfolder, **hub)
    components = component_folders(folder, subfolder, **hub).keys()
    denoisers = components & _DENOISERS.keys()
    if others := components - denoisers:
        denoiser = _DENOISERS[min(denoisers, default=denoiser_name(pipe))]
        raise AdapterFileError(
            f"The control {folder} adapts {', '.join(sorted(others))} too, but a control adapts the {denoiser} alone, "
            "where its range and strength have a meaning: train it without them."
        )
    load_hra_weights_inactive(pipe, folder, adapter_name, subfolder=subfolder, **hub)
    channels, scale = target.channels(getattr(pipe, denoiser_name(pipe))), target.scale_factor(pipe)
    if (encoder.config["out_channels"], encoder.config["scale_factor"]) != (channels, scale):
        unload_hra_weights(pipe, adapter_name)
        raise AdapterFileError(
            f"The control {folder} adds {encoder.config['out_channels']} channels to a latent "
            f"{encoder.config['scale_factor']} times smaller than the image; this model has {channels} and "
            f"{scale}: load it into the model it was trained on."
        )
    return Control(encoder=encoder.eval().requires_grad_(False), adapter_name=adapter_name)


def read_encoder(folder: str | Path, subfolder: str | None = None, **hub: Any) -> ConditionEncoder:
    """Read a control's encoder.

    Raises:
        AdapterFileError: the encoder is missing or damaged.
    """
    path = find_encoder(folder, subfolder, **hub)
    if path is None:
        raise AdapterFileError(
            f"{folder} holds no control: a control has a folder {ENCODER} beside its adapter. Load an adapter without "
            "one with load_hra_weights."
        )
    config, tensors = read_json(path / ENCODER_FILES[0]), read_tensors(path / ENCODER_FILES[1])
    try:
        encoder = _make_encoder(config, tensors)
        encoder.annotator  # noqa: B018 (raises for an unknown annotator)
    except Exception as error:  # of diffusers, for settings of other types
        raise AdapterFileError(f"The encoder {path} cannot be read: {str(error)[:400]}") from error
    return encoder


def _make_encoder(config: dict[str, Any], tensors: dict[str, Tensor]) -> ConditionEncoder:
    """Make an encoder of exactly these tensors.

    Raises:
        AdapterFileError: a size is out of its range, or a tensor is missing, unknown or of another shape.
    """
    for name, most in _MAX_SIZES.items():
        if type(size := config.get(name, 1)) is not int or not 1 <= size <= most:
            raise AdapterFileError(f"its {name} is {str(size)[:40]}: give a whole number from 1 to {most}.")
    with torch.device("meta"):
        encoder: Any = ConditionEncoder.from_config(config)
    expected = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    actual = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wrong := sorted(dict(expected.items() ^ actual.items())):
        raise AdapterFileError(f"these tensors are missing, unknown or of another shape: {shorten(wrong)}.")
    encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    return encoder


def save_hra_control(pipe: Pipeline, control: Control, folder: str | Path) -> Path:
    """Write a control of a pipeline into a folder, whole or not at all; return the folder.

    Raises:
        OutputError: the folder cannot be written; its earlier content is intact.
    """
    with replacing(Path(folder)) as new, offloading_suspended(pipe):
        name = denoiser_name(pipe)
        save_adapter(getattr(pipe, name), new / name, control.adapter_name)
        control.encoder.save_pretrained(new / ENCODER)
        write_together({new / name: data for name, data in base_files_of(pipe).items()})
    return Path(folder)
