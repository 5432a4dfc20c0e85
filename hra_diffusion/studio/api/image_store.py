"""Endpoints of the studio's images: search, describe, make a favorite, delete."""

from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.api.endpoints import expose, expose_typed
from hra_diffusion.studio.engine.images.image_store import StoredImage
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import served_copy


def expose_image_store(session: Session) -> None:
    """Add the endpoints."""

    def images(query: str = "", favorites: bool = False, page: int = 1) -> dict[str, Any]:
        """Return a page of the studio's images, newest first: those with all words in prompt, adapters or seed."""
        if not isinstance(query, str) or not isinstance(page, int):
            raise ConfigError("query must be a text, and page a whole number.")
        result = session.image_store.search(query, starred=favorites, page=page)
        rows = [_image_row(image) for image in result.images]
        return {"total": result.total, "page": result.page, "pages": result.pages, "images": rows}

    def star_image(name: str, favorite: bool = True) -> dict[str, Any]:
        """Add an image to the favorites, or remove it. Returns its row."""
        return _image_row(session.image_store.star(name, bool(favorite)))

    def delete_image(name: str) -> str:
        """Delete an image permanently. Returns its name."""
        return session.image_store.delete_image(name).name

    for handler in (images, star_image, delete_image):
        expose_typed(handler.__name__, handler)

    def image(name: str) -> str:
        """Return the file of an image, with its settings in it; /restore reads them."""
        return served_copy(session, session.image_store.find(name).path)

    expose("image", image, [gr.Textbox(label="name")], gr.File(label="image"))


def _image_row(image: StoredImage) -> dict[str, Any]:
    request = image.request
    return {
        "name": image.name,
        "favorite": image.starred,
        "prompt": request.prompt if request else None,
        "adapters": [use.name for use in request.adapters] if request else [],
        "seed": request.seed if request else None,
    }
