"""Loading and saving of controls.

    canny/
    ├── unet/                adapter_config.json, adapter_model.safetensors: an ordinary adapter
    └── condition_encoder/   config.json with the annotator, diffusion_pytorch_model.safetensors

In a run's output folder the control is the folder ``adapter``.
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from hra_diffusion.control.encoder import ConditionEncoder
from hra_diffusion.control.guiding import Control
from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.files import replacing, write_together
from hra_diffusion.formats.folders import ENCODER, ENCODER_FILES, component_folders, find_encoder
from hra_diffusion.formats.tensors import read_tensors
from hra_diffusion.pipelines import unload_hra_weights
from hra_diffusion.pipelines.components import base_files_of, offloading_suspended
from hra_diffusion.pipelines.loading import load_hra_weights_inactive
from hra_diffusion.pipelines.protocol import Pipeline


def load_hra_control(
    pipe: Pipeline, folder: str | Path, adapter_name: str = "control", *, subfolder: str | None = None, **hub: Any
) -> Control:
    """Load a control into a pipeline with a UNet, inactive until :meth:`Control.guiding`.

    Active adapters stay active.

    >>> control = load_hra_control(pipe, "outputs/canny")
    >>> with control.guiding(pipe, image):
    ...     pipe("a cat on the beach").images[0]

    Args:
        pipe: Stable Diffusion 1, 2 or XL: text to image, image to image, inpainting.
        folder: the control's folder, the output folder of its training run, or a repository on the hub.
        adapter_name: the adapter's name in the UNet.
        subfolder: the control's folder within `folder`.
        hub: arguments of `huggingface_hub.snapshot_download`: revision, token, cache_dir, …

    Raises:
        AdapterFileError: the control is missing, damaged or for another model; the pipeline is unchanged.
        ConfigError: the pipeline has an adapter of this name.
    """
    encoder = read_encoder(folder, subfolder, **hub)
    if others := component_folders(folder, subfolder, **hub).keys() - {"unet"}:
        raise AdapterFileError(
            f"The control {folder} adapts {', '.join(sorted(others))} too, but a control adapts the UNet alone, where "
            "its range and strength have a meaning: train it without them."
        )
    load_hra_weights_inactive(pipe, folder, adapter_name, subfolder=subfolder, **hub)
    channels = pipe.unet.conv_in.out_channels
    if (encoder.config["out_channels"], encoder.config["scale_factor"]) != (channels, pipe.vae_scale_factor):
        unload_hra_weights(pipe, adapter_name)
        raise AdapterFileError(
            f"The control {folder} adds {encoder.config['out_channels']} channels to a latent "
            f"{encoder.config['scale_factor']} times smaller than the image; this model has {channels} and "
            f"{pipe.vae_scale_factor}: load it into the model it was trained on."
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
            f"{folder} holds no control: a control has a folder {ENCODER} beside unet. Load an adapter without one "
            "with load_hra_weights."
        )
    read_tensors(path / ENCODER_FILES[1])
    try:
        encoder = ConditionEncoder.from_pretrained(path, use_safetensors=True, low_cpu_mem_usage=False)
        encoder.annotator  # noqa: B018 (raises for an unknown annotator)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise AdapterFileError(f"The encoder {path} cannot be read: {error}") from error
    return encoder


def save_hra_control(pipe: Pipeline, control: Control, folder: str | Path) -> Path:
    """Write a control of a pipeline into a folder, whole or not at all; return the folder.

    Raises:
        OutputError: the folder cannot be written; its earlier content is intact.
    """
    with replacing(Path(folder)) as new, offloading_suspended(pipe):
        pipe.unet.save_pretrained(new / "unet", control.adapter_name)
        control.encoder.save_pretrained(new / ENCODER)
        write_together({new / name: data for name, data in base_files_of(pipe).items()})
    return Path(folder)
