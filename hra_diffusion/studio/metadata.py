"""What a PNG says of how it was drawn: A1111's ``parameters`` for other tools, and our request as JSON.

a photo of a sks dog
Negative prompt: blurry
Steps: 25, Sampler: DDIM, CFG scale: 7.5, Seed: 1, Size: 512x512, Model: …, HRA adapters: dog:0.8
"""

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hra_diffusion.errors import ImageError
from hra_diffusion.studio.requests import OWN_SCHEDULER, DrawRequest

OURS, THEIRS = "hra_diffusion", "parameters"
_NEGATIVE = "Negative prompt: "
_LAST_LINE = re.compile(r"\s*Steps: \d+,")
_FIELDS = {"Steps": "steps", "CFG scale": "guidance_scale", "Seed": "seed"}


def png_info(request: DrawRequest, model: str) -> PngInfo:
    """Return the texts for a picture, to be saved with ``pnginfo=``.

    Args:
        request: a request for this picture alone.
        model: name of the base model.
    """
    info = PngInfo()
    info.add_text(THEIRS, parameters(request, model))
    info.add_text(OURS, json.dumps({"request": request.to_json(), "model": model}))
    return info


def parameters(request: DrawRequest, model: str) -> str:
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


def read_request(path: Path) -> DrawRequest:
    """Read how a picture was drawn: ours wholly, A1111's as far as both know the same.

    Raises:
        ImageError: the file is no PNG, or says nothing of it.
        ConfigError: what it says cannot be drawn.
    """
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            texts = {key: value for key, value in picture.info.items() if key in (OURS, THEIRS)}
    except Exception as error:  # OSError mostly; ValueError for texts that explode
        raise ImageError("This file is no PNG that can be read: drop a picture that the studio saved.") from error
    if (ours := _parsed(texts.get(OURS))) is not None:
        return DrawRequest.of(ours)
    if isinstance(texts.get(THEIRS), str):
        return DrawRequest.of(from_parameters(texts[THEIRS]))
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
