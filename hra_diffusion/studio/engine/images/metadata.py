"""Metadata of PNG files: A1111's ``parameters`` for other tools, and the request as JSON.

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
from hra_diffusion.formats.files import write_file
from hra_diffusion.studio.engine.generation.requests import MAX_PROMPT, MODEL_SCHEDULER, GenerateRequest
from hra_diffusion.studio.engine.generation.schedulers import scheduler_of_a1111

REQUEST_KEY, A1111_KEY = "hra_diffusion", "parameters"
_NEGATIVE = "Negative prompt: "
_LAST_LINE = re.compile(r"\s*Steps: \d+,")
_FIELDS = {
    "Steps": "steps",
    "CFG scale": "guidance_scale",
    "Seed": "seed",
    "Hires upscale": "hires_scale",
    "Hires steps": "hires_steps",
}
_MAX_CHARACTERS = 2 * MAX_PROMPT + 20_000
"""Limit of A1111's text: two prompts and their settings."""
_BEFORE_WEIGHTS = {"prompt_syntax": "plain"}
"""Settings of requests that were saved before prompts had weights."""


def png_info(request: GenerateRequest, model: str) -> PngInfo:
    """Return the metadata of an image, for ``pnginfo=``.

    Args:
        request: the request of this image alone.
        model: name of the base model.
    """
    info = PngInfo()
    info.add_text(A1111_KEY, parameters(request, model))
    info.add_text(REQUEST_KEY, json.dumps({"request": request.to_json(), "model": model}))
    return info


def write_png(path: Path, image: Image.Image, request: GenerateRequest, model: str) -> None:
    """Write an image with its request and the name of its base model, as a whole file."""
    write_file(path, lambda file: image.save(file, pnginfo=png_info(request, model)))


def parameters(request: GenerateRequest, model: str) -> str:
    """Return the settings in A1111's text format."""
    settings = {
        "Steps": request.steps,
        "Sampler": "default" if request.scheduler == MODEL_SCHEDULER else request.scheduler,
        "CFG scale": f"{request.guidance_scale:g}",
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Model": model,
    }
    if request.clip_skip is not None:
        settings["Clip skip"] = request.clip_skip + 1  # A1111 counts from the last layer, 1
    if request.image:
        settings["Denoising strength"] = f"{request.image_strength:g}"
    if request.hires_scale > 1:
        settings |= {"Hires upscale": f"{request.hires_scale:g}", "Hires upscaler": "Lanczos"}
        settings["Denoising strength"] = f"{request.hires_strength:g}"
        if request.hires_steps:
            settings["Hires steps"] = request.hires_steps
    if request.mask:
        settings["Mask blur"] = request.mask_blur
    if request.adapters:
        settings["HRA adapters"] = " ".join(f"{use.name}:{use.strength:g}" for use in request.adapters)
        settings["HRA combine"] = request.combine
    lines = [request.prompt, *([_NEGATIVE + request.negative_prompt] if request.negative_prompt else [])]
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in settings.items())])


def read_request(path: Path) -> GenerateRequest:
    """Read the request of a PNG: complete from the studio, common settings from A1111.

    Raises:
        ImageError: the file is no PNG, or has no settings.
        ConfigError: a setting is invalid.
    """
    return GenerateRequest.from_json(read_png_settings(path))


def read_model(path: Path) -> str | None:
    """Return the name of the base model of a PNG of the studio, or None.

    Raises:
        ImageError: the file is no PNG.
    """
    try:
        model = json.loads(_texts(path).get(REQUEST_KEY, ""))["model"]
    except (TypeError, ValueError, KeyError, RecursionError):
        return None
    return model if isinstance(model, str) else None


def _texts(path: Path) -> dict[str, Any]:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return {key: value for key, value in image.info.items() if key in (REQUEST_KEY, A1111_KEY)}
    except Exception as error:  # OSError mostly; ValueError for text beyond Pillow's limit
        raise ImageError("This file is no readable PNG: drop an image saved by the studio or by A1111.") from error


def read_png_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a PNG, unchecked; errors as in `read_request`, for the file."""
    texts = _texts(path)
    if (request := _parse_request(texts.get(REQUEST_KEY))) is not None:
        return request
    if isinstance(texts.get(A1111_KEY), str):
        return parse_parameters(texts[A1111_KEY])
    raise ImageError("This PNG holds no settings: its metadata was removed, or another program made it.")


def parse_parameters(text: str) -> dict[str, Any]:
    """Parse A1111's text format; missing settings are left out.

    Raises:
        ImageError: the text is too long.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ImageError(f"The settings in this image have {len(text):,} characters, more than {_MAX_CHARACTERS:,}.")
    lines = text.split("\n")
    last = next((i for i in range(len(lines) - 1, -1, -1) if _LAST_LINE.match(lines[i])), len(lines))
    negative = next((i for i, line in enumerate(lines[:last]) if line.startswith(_NEGATIVE)), last)
    values: dict[str, Any] = {
        "prompt": "\n".join(lines[:negative]).strip(),
        "negative_prompt": "\n".join(lines[negative:last]).removeprefix(_NEGATIVE).strip(),
    }
    parts = (part.partition(": ") for line in lines[last:] for part in line.split(","))
    settings = {name.strip(): value for name, _, value in parts if value}
    values |= {name: settings[label].strip() for label, name in _FIELDS.items() if label in settings}
    if size := re.fullmatch(r"(\d+)x(\d+)", settings.get("Size", "")):
        values |= {"width": size[1], "height": size[2]}
    if "Hires upscale" in settings and "Denoising strength" in settings:
        values["hires_strength"] = settings["Denoising strength"].strip()
    if scheduler := scheduler_of_a1111(settings.get("Sampler", ""), settings.get("Schedule type", "")):
        values["scheduler"] = scheduler
    if layers := re.fullmatch(r"\s*(\d{1,3})\s*", settings.get("Clip skip", "")):
        values["clip_skip"] = max(0, int(layers[1]) - 1)  # A1111 counts from the last layer, 1
    return values


def _parse_request(text: Any) -> dict[str, Any] | None:
    try:
        request = json.loads(text)["request"]
    except (TypeError, ValueError, KeyError, RecursionError):
        return None
    return _BEFORE_WEIGHTS | request if isinstance(request, dict) else None
