"""What a PNG says of how it was drawn: A1111's ``parameters`` for other tools, and our request as JSON.

a photo of a sks dog
Negative prompt: blurry
Steps: 25, Sampler: DDIM, CFG scale: 7.5, Seed: 1, Size: 512x512, Model: …, HRA adapters: dog:0.8
"""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.studio.engine.base import Base
from hra_diffusion.studio.engine.library import Library
from hra_diffusion.studio.engine.requests import OWN_SCHEDULER, GenerateRequest
from hra_diffusion.studio.engine.schedulers import check_scheduler

OURS, THEIRS = "hra_diffusion", "parameters"
_NEGATIVE = "Negative prompt: "
_LAST_LINE = re.compile(r"\s*Steps: \d+,")
_FIELDS = {"Steps": "steps", "CFG scale": "guidance_scale", "Seed": "seed"}


def png_info(request: GenerateRequest, model: str) -> PngInfo:
    """Return the texts for an image, to be saved with ``pnginfo=``.

    Args:
        request: a request for this image alone.
        model: name of the base model.
    """
    info = PngInfo()
    info.add_text(THEIRS, parameters(request, model))
    info.add_text(OURS, json.dumps({"request": request.to_json(), "model": model}))
    return info


def parameters(request: GenerateRequest, model: str) -> str:
    """Write the text that A1111 writes."""
    said = {
        "Steps": request.steps,
        "Sampler": "default" if request.scheduler == OWN_SCHEDULER else request.scheduler,
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": model,
    }
    if request.image:
        said["Denoising strength"] = f"{request.image_strength:g}"
    if request.adapters:
        said["HRA adapters"] = " ".join(f"{use.name}:{use.strength:g}" for use in request.adapters)
        said["HRA combine"] = request.combine
    lines = [request.prompt, *([_NEGATIVE + request.negative_prompt] if request.negative_prompt else [])]
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in said.items())])


def read_request(path: Path) -> GenerateRequest:
    """Read how an image was drawn: ours wholly, A1111's as far as both know the same.

    Raises:
        ImageError: the file is no PNG, or says nothing of it.
        ConfigError: what it says cannot be drawn.
    """
    return GenerateRequest.of(_values(path))


def restored(path: Path, base: Base, library: Library, default: GenerateRequest) -> tuple[GenerateRequest, list[str]]:
    """Read how an image was drawn, as far as this model and library can draw it.

    Args:
        path: a PNG.
        base: the model.
        library: where adapters are.
        default: what counts where the image says nothing, or what cannot be drawn.

    Returns:
        The request, and a sentence for everything that was left out or changed.

    Raises:
        ImageError: the file is no PNG, or says nothing of it.
    """
    values, changes = _values(path), []
    for name in [each.name for each in fields(GenerateRequest) if each.name in values]:
        try:
            GenerateRequest.of({name: values[name]})
            if name == "scheduler":
                check_scheduler(values[name], base.schedulers)
        except ConfigError as error:
            changes.append(f"Left out: {error}")
            del values[name]
    request = GenerateRequest.of(default.to_json() | values)
    for name in ("width", "height"):
        side = max(1, round(getattr(request, name) / base.multiple)) * base.multiple
        if side != getattr(request, name):
            changes.append(f"{name} is {getattr(request, name)}: taken as {side}, which this model can draw.")
            request = replace(request, **{name: side})
    entries = {entry.name: entry for entry in library.entries()}
    here = tuple(use for use in request.adapters if use.name in entries)
    changes += [f"{use.name!r} is not in the library: left out." for use in request.adapters if use not in here]
    followed = any(entries[use.name].annotator for use in here)
    return replace(request, adapters=here, condition=request.condition if followed else None), changes


def _values(path: Path) -> dict[str, Any]:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            texts = {key: value for key, value in image.info.items() if key in (OURS, THEIRS)}
    except Exception as error:  # OSError mostly; ValueError for texts that explode
        raise ImageError("This file is no PNG that can be read: drop an image that the studio saved.") from error
    if (ours := _parsed(texts.get(OURS))) is not None:
        return ours
    if isinstance(texts.get(THEIRS), str):
        return from_parameters(texts[THEIRS])
    raise ImageError("This PNG does not say how it was drawn: its texts were lost, or it is from elsewhere.")


def from_parameters(text: str) -> dict[str, Any]:
    """Read A1111's text; what it does not say is left out."""
    lines = text.split("\n")
    last = next((i for i in range(len(lines) - 1, -1, -1) if _LAST_LINE.match(lines[i])), len(lines))
    negative = next((i for i, line in enumerate(lines[:last]) if line.startswith(_NEGATIVE)), last)
    values: dict[str, Any] = {
        "prompt": "\n".join(lines[:negative]).strip(),
        "negative_prompt": "\n".join(lines[negative:last]).removeprefix(_NEGATIVE).strip(),
    }
    said = dict(re.findall(r"([A-Z][\w ]*): ([^,]+)", "\n".join(lines[last:])))
    values |= {ours: said[theirs].strip() for theirs, ours in _FIELDS.items() if theirs in said}
    if size := re.fullmatch(r"(\d+)x(\d+)", said.get("Size", "")):
        values |= {"width": size[1], "height": size[2]}
    return values


def _parsed(text: Any) -> dict[str, Any] | None:
    try:
        request = json.loads(text)["request"]
    except (TypeError, ValueError, KeyError, RecursionError):
        return None
    return request if isinstance(request, dict) else None
