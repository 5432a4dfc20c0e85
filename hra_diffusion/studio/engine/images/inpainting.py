"""Masks of inpainting and outpainting: uploaded or painted images → the start image and the mask of a request."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from hra_diffusion.formats.masks import mask_of
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.setting_error import SettingError
from hra_diffusion.studio.engine.uploads import DECODING, Uploads, read_upload

SIDES = ("left", "right", "top", "bottom")
MAX_OUTPAINT = 1024


def with_mask(request: GenerateRequest, mask: Path, uploads: Uploads) -> GenerateRequest:
    """Return a request with the mask of its start image.

    Args:
        request: a request with a start image.
        mask: an uploaded or painted image: white is repainted, black and transparent parts are kept.
        uploads: the studio's uploads.

    Raises:
        ImageError: the file is unreadable.
        ConfigError: the request has no start image, or the mask is black.
    """
    with DECODING:
        gray = mask_of(read_upload(mask, alpha=True))
        if not gray.getbbox():
            raise SettingError("mask_image", "is black, so that nothing is repainted: paint a part of it in white.")
        if request.image is None:
            raise SettingError("mask_image", "needs a start image: choose one, or remove the mask.")
        return replace(request, mask=uploads.save(gray))


def with_outpainting(request: GenerateRequest, pixels: object, sides: object, uploads: Uploads) -> GenerateRequest:
    """Return a request whose start image is extended at some of its sides; the mask has the new parts.

    The start image has the request's size, to which the new parts are added. They begin as its outermost pixels.

    Args:
        request: a request with a start image, and possibly a mask.
        pixels: width of the new parts; 0 changes nothing.
        sides: some of `SIDES`.
        uploads: the studio's uploads.

    Raises:
        ConfigError: the number or a side is invalid, there is no start image, or the result is too large.
        ImageError: the start image is unreadable.
    """
    if not pixels:
        return request
    if not (isinstance(pixels, int | float) and pixels == int(pixels) and 0 < pixels <= MAX_OUTPAINT):
        given = str(pixels)[:80]
        raise SettingError("outpaint", f"is {given}: give a whole number of pixels from 0 to {MAX_OUTPAINT}.")
    chosen = sides if isinstance(sides, Sequence) else [sides]
    if not chosen or any(side not in SIDES for side in chosen):
        raise SettingError("outpaint_sides", f"is {str(sides)[:80]}: choose some of {', '.join(SIDES)}.")
    if request.image is None:
        raise SettingError("outpaint", "needs a start image: choose one, or give 0.")
    left, right, top, bottom = (int(pixels) if side in chosen else 0 for side in SIDES)
    width, height = request.width, request.height
    larger = replace(request, width=width + left + right, height=height + top + bottom)
    margins = ((top, bottom), (left, right))
    with DECODING:
        image = uploads.open(request.image).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
        extended = np.pad(np.asarray(image), (*margins, (0, 0)), mode="edge")
        mask = uploads.open(request.mask).convert("L") if request.mask else Image.new("L", (1, 1))
        old = np.asarray(mask.resize((width, height), Image.Resampling.BILINEAR))
        new = np.pad(old, margins, constant_values=255)
        return replace(larger, image=uploads.save(Image.fromarray(extended)), mask=uploads.save(Image.fromarray(new)))
