"""A stored image as data and HTML of the Images tab: its thumbnail, its title and its settings."""

import html
from functools import lru_cache
from pathlib import Path
from typing import Any

from hra_diffusion.studio.engine.images.image_store import SearchResult, StoredImage
from hra_diffusion.studio.tabs.common import note, thumbnail_url

_SIDE = 224
"""Longest side of a thumbnail in pixels."""
NO_IMAGES = "No images yet: generate one."
_NO_MATCH = "No image has these words in its prompt, adapters or seed."


def image_total(result: SearchResult, *, searched: bool) -> str:
    """Return the number of images and pages that a search found, as a sentence."""
    if not result.total:
        return _NO_MATCH if searched else NO_IMAGES
    images = "1 image" if result.total == 1 else f"{result.total:,} images"
    return images + (f", page {result.page} of {result.pages}" if result.pages > 1 else "")


def image_item(image: StoredImage) -> dict[str, Any]:
    """Return the data of an image's thumbnail for image_list.js."""
    prompt = image.request.prompt if image.request else image.path.name
    return {
        "name": image.name,
        "title": f"{' '.join(prompt[:120].split())} ({image.path.name[:13]})",
        "starred": image.starred,
        "thumbnail": stored_thumbnail(image.path, image.changed),
    }


@lru_cache(maxsize=2000)  # some 10 kB each; a changed file has a new one
def stored_thumbnail(path: Path, changed: int) -> str:
    """Return the thumbnail of a file that changed at a time, in nanoseconds; see `thumbnail_url`."""
    return thumbnail_url(path, _SIDE)


def image_details(image: StoredImage) -> str:
    """Return the HTML of an image's settings."""
    request = image.request
    if request is None:
        return note(f"{image.name}: this file is damaged, or holds no settings of the studio.", "warning")
    adapters = ", ".join(f"{use.name} at {use.strength:g}" for use in request.adapters)
    facts = {
        "Prompt": request.prompt[:2000],
        "Negative prompt": request.negative_prompt[:2000],
        "Adapters": adapters or "none",
        "Seed": str(request.seed),
        "Steps, guidance": f"{request.steps}, {request.guidance_scale:g}",
        "Size": f"{request.width} × {request.height}",
        "Scheduler": request.scheduler,
        "File": image.name,
    }
    rows = "".join(f"<dt>{label}</dt><dd>{html.escape(value)}</dd>" for label, value in facts.items() if value)
    return f'<dl class="image-facts">{rows}</dl>'
