"""HRA adapters in diffusers pipelines: a folder on disk holds one sub-folder a component.

    tiger/
    ├── unet/          adapter_config.json, adapter_model.safetensors
    └── text_encoder/  the same

>>> pipe = StableDiffusionPipeline.from_pretrained(model, use_safetensors=True)
>>> load_hra_weights(pipe, "tiger")
>>> pipe("a photo of a sks tiger").images[0]
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors import SafetensorError

from hra_diffusion.adapter import HRAModel
from hra_diffusion.errors import AdapterFileError, ModelError
from hra_diffusion.formats.files import read_json
from hra_diffusion.formats.peft import CONFIG_FILE, WEIGHTS_FILE


def pipeline_class(name: str, revision: str | None = None) -> str:
    """Return the name of the pipeline class that a model folder or a model on the hub is for.

    Raises:
        ModelError: it is neither.
    """
    try:
        return DiffusionPipeline.load_config(name, revision=revision)["_class_name"]
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{name!r} is no model folder and no model of the hub that can be reached: a model folder holds "
            "model_index.json beside unet, text_encoder, tokenizer, vae and scheduler."
        ) from error


def load_pipeline(name: str, **options: Any) -> Any:
    """Load a pipeline from a folder or the hub, from safetensors files only, in float32, without progress bars.

    Args:
        name: the folder, or the name on the hub.
        options: passed on to ``DiffusionPipeline.from_pretrained``.

    Raises:
        ModelError: it is no model, or an incomplete or damaged one.
    """
    pipeline_class(name, options.get("revision"))
    try:
        pipe = DiffusionPipeline.from_pretrained(name, use_safetensors=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"The model {name!r} cannot be loaded: {error}") from error
    pipe.to(torch.float32)  # diffusers widens what is stored in half precision, transformers does not
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: Any, prompt: str, seed: int, **options: Any) -> Image.Image:
    """Draw one picture. Previews and the command line call this too: the same seed gives the same picture.

    Args:
        pipe: a text-to-image pipeline.
        prompt: what to draw.
        seed: of a CPU generator, so that it means the same on every device.
        options: passed on to the pipeline.
    """
    return pipe(prompt, generator=torch.Generator().manual_seed(seed), **options).images[0]


def load_hra_weights(pipe: Any, folder: str | Path, adapter_name: str = "default") -> None:
    """Load an adapter into the components of a pipeline it was trained for, all of them or none.

    Args:
        pipe: a diffusers pipeline without an HRA adapter; its components are replaced by adapted ones.
        folder: the adapter's folder, or the output folder of the run that made it.
        adapter_name: what the adapter is to be called.

    Raises:
        AdapterFileError: the folder holds no adapter, a damaged one, or one for a component the pipeline lacks; the
            pipeline is as before.
    """
    parts = _component_folders(Path(folder))
    if present := adapted_components(pipe):
        raise AdapterFileError(
            f"There is an HRA adapter in {', '.join(present)} already: call unload_hra_weights first."
        )
    for name in parts:
        if getattr(pipe, name, None) is None:
            raise AdapterFileError(
                f"The adapter {folder} is for {', '.join(parts)}, but the {type(pipe).__name__} has no {name}: "
                "load it into the kind of pipeline it was trained for."
            )
    try:
        for name, part in parts.items():
            setattr(pipe, name, HRAModel.from_pretrained(getattr(pipe, name), part, adapter_name))
    except BaseException:
        unload_hra_weights(pipe)
        raise


def unload_hra_weights(pipe: Any) -> None:
    """Give a pipeline its own components back, the same objects as before the adapter came."""
    for name, component in adapted_components(pipe).items():
        setattr(pipe, name, component.unload())


@contextmanager
def hra_disabled(pipe: Any) -> Iterator[None]:
    """Let a pipeline act as its base model within a ``with`` block."""
    with ExitStack() as stack:
        for component in adapted_components(pipe).values():
            stack.enter_context(component.disable_adapter())
        yield


def adapted_components(pipe: Any) -> dict[str, HRAModel]:
    """Return the components of a pipeline that hold an HRA adapter, by name."""
    return {name: component for name, component in pipe.components.items() if isinstance(component, HRAModel)}


def base_model(folder: str | Path) -> str | None:
    """Return the name of the base model an adapter was trained on, if it says so.

    Raises:
        AdapterFileError: the folder holds no adapter.
    """
    for part in _component_folders(Path(folder)).values():
        if name := read_json(part / CONFIG_FILE).get("base_model_name_or_path"):
            return name
    return None


def _component_folders(folder: Path) -> dict[str, Path]:
    """Find the sub-folders with an adapter by component, in the folder or, of a run's output, in its ``adapter``."""
    for place in (folder, folder / "adapter"):
        found = {path.parent.name: path.parent for path in sorted(place.glob(f"*/{CONFIG_FILE}"))}
        if found and place.name not in found:
            return found
    raise AdapterFileError(
        f"There is no adapter in {folder}: its folder holds one sub-folder for each adapted component (unet, "
        f"text_encoder), with {CONFIG_FILE} and {WEIGHTS_FILE}."
    )
