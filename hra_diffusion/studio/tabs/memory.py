"""Memory of the page: a reload or a restart of the studio keeps the settings, the images and the training form.

The browser stores the values. They come back from there as unchecked input: files are taken only from the studio's
cache, and images by their names.
"""

import json
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import served_copy
from hra_diffusion.studio.tabs.events import listen
from hra_diffusion.studio.tabs.first_visit import first_settings
from hra_diffusion.studio.tabs.loading_settings import GenerateTab
from hra_diffusion.studio.tabs.settings import SETTINGS
from hra_diffusion.studio.tabs.training_fields import FIELDS, TrainingFields

_KEY = "hra-studio"
"""Key and secret in the browser's storage: the same after a restart, since the values are no secret."""
_GALLERY = "gallery"
_TRAINING = "training."
"""Prefix of the training form's names, since both forms have steps."""
_FILES = ("image", "mask_image", "control_image", f"{_TRAINING}files", f"{_TRAINING}conditions")
_MAX_IMAGES = 64


def remember(session: Session, generate: GenerateTab, training: TrainingFields) -> None:
    """Store the values of the page at every change, and restore them when the page loads."""
    settings = generate.settings
    values = dict(zip(SETTINGS, settings.components, strict=True))
    values |= {_TRAINING + name: part for name, part in zip(FIELDS, training.components, strict=True)}
    files = {name: values.pop(name) for name in _FILES}
    remembered = {**values, **files, _GALLERY: generate.gallery}
    components = list(remembered.values())
    memory = gr.BrowserState(None, storage_key=_KEY, secret=_KEY)
    listen([part.change for part in components], None, components, memory, js=_collect(list(remembered)))
    # The browser restores values at once, before anybody types; the studio checks the files.
    plain = list(values.values())
    restored = listen(None, None, [memory, *plain], plain, js=_restore(list(values), first_settings(session)))

    def restore_files(memory: Any) -> list[Any]:
        stored = memory if isinstance(memory, dict) else {}
        files = (_cached_files(session, stored.get(name)) or gr.skip() for name in _FILES)
        return [*files, *_results(session, stored.get(_GALLERY))]

    outputs = [*files.values(), generate.gallery, generate.status]
    listen(restored.then, restore_files, memory, outputs, queue=False)


def _collect(names: list[str]) -> str:
    """Return a script that turns the values of components into one object."""
    return f"(...values) => [Object.fromEntries({json.dumps(names)}.map((name, index) => [name, values[index]]))]"


def _restore(names: list[str], first: dict[str, Any]) -> str:
    """Return a script that returns the stored values; of components without one the present ones.

    Args:
        names: names of the components.
        first: values by name for a browser without any stored value.
    """
    stored = "memory?.[name] ?? (memory ? null : first[name]) ?? values[index]"
    return (
        f"(memory, ...values) => {{ const first = {json.dumps(first)};"
        f" return {json.dumps(names)}.map((name, index) => {stored}); }}"
    )


def _results(session: Session, items: Any) -> list[Any]:
    """Return the gallery with the stored images that exist, and the status."""
    existing: list[tuple[str, str]] = []
    for item in items[:_MAX_IMAGES] if isinstance(items, list) else []:
        path = _path(item.get("image")) if isinstance(item, dict) else None
        if image := session.image_store.find_file(Path(str(path)).name):
            existing.append((served_copy(session, image.path), str(item.get("caption") or "")[:100]))
    return [existing, ""] if existing else [gr.skip(), gr.skip()]


def _cached_files(session: Session, files: Any) -> str | list[str] | None:
    """Return the path of one file, or the paths of a list of files; files outside of the cache are left out."""
    if isinstance(files, list):
        return [path for file in files if (path := cached_file(session, file))]
    return cached_file(session, files)


def cached_file(session: Session, file: Any) -> str | None:
    """Return the path of an uploaded file that is still in the studio's cache, or None."""
    path = _path(file)
    if not isinstance(path, str) or "\0" in path:
        return None
    try:
        resolved = Path(path).resolve()
    except (OSError, RuntimeError):
        return None
    return str(resolved) if resolved.is_relative_to(session.cache.resolve()) and resolved.is_file() else None


def _path(file: Any) -> Any:
    return file.get("path") if isinstance(file, dict) else file
