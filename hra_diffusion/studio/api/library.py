"""Endpoints of the library: list, describe, rename, delete, import, export and publish adapters."""

from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.formats.contents import read_components
from hra_diffusion.studio.api.endpoints import expose, expose_typed
from hra_diffusion.studio.engine.adapters.entry import Entry
from hra_diffusion.studio.engine.exporting import import_adapter, publish, uses_to_merge, write_lora, write_merged_model
from hra_diffusion.studio.engine.generation.requests import Combine
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.settings import Settings


def expose_library(session: Session, settings: Settings) -> None:
    """Add the endpoints of the library."""

    def adapters() -> list[dict[str, Any]]:
        """Return the adapters of the library."""
        session.import_finished_jobs()
        return [_row(entry) for entry in session.library.entries()]

    def adapter(name: str) -> dict[str, Any]:
        """Return the details of an adapter, with the rotation angle of each layer in degrees."""
        entry = session.library.entry(name)
        layers = {
            f"{component.name}.{layer.name}": round(layer.angle, 3)
            for component in read_components(entry.folder)
            for layer in component.layers
        }
        return _row(entry) | {"components": list(entry.components), "angles": layers}

    def rename(name: str, new_name: str) -> str:
        """Rename an adapter. Returns its new name."""
        return session.library.rename(name, new_name)

    def delete(name: str) -> str:
        """Delete an adapter permanently. Returns its name."""
        session.library.delete(name)
        return name

    def push(name: str, repository: str, license: str, token: str) -> str:
        """Publish an adapter on the Hub with the user's access token. Returns the commit's URL."""
        return publish(session.library.entry(name), repository, license, token)

    for handler in (adapters, adapter, rename, delete, push):
        expose_typed(handler.__name__, handler)
    _expose_files(session, settings)


def _expose_files(session: Session, settings: Settings) -> None:
    """Add the endpoints that take or return files."""

    def import_files(files: list[str] | None, name: str, base: str) -> tuple[str, float]:
        """Import an adapter, or a LoRA as the nearest adapter. Returns its name, and the lost share of a LoRA."""
        paths = [Path(file) for file in files or []]
        entry, lost = import_adapter(session.worker, session.library, paths, name, base or None)
        return entry.name, lost

    def export_lora(name: str, layout: str, strength: float, dtype: str) -> str:
        """Export an adapter as a LoRA with the same change of every weight. Returns the file."""
        entry = session.library.entry(name)
        return str(write_lora(session.worker, entry, session.cache, layout, float(strength), dtype))

    def export_model(
        name: str, strength: float, dtype: str, several: bool, adapters: list[Any] | None, combine: Combine
    ) -> str:
        """Export the base model with one or several adapters merged. Returns a zip of a diffusers folder."""
        uses = uses_to_merge(name, strength, adapters if several else None)
        return str(write_merged_model(session.worker, uses, session.cache, combine, dtype))

    name = gr.Textbox(label="name")
    strength, dtype = gr.Number(1.0, label="strength"), gr.Textbox("fp16", label="dtype")
    imported = [gr.Textbox(label="name"), gr.Number(label="lost share")]
    files, base = gr.File(label="files", file_count="multiple"), gr.Textbox("", label="base")
    expose("import_adapter", import_files, [files, name, base], imported)
    layout = gr.Textbox("kohya", label="layout")
    expose("export_lora", export_lora, [name, layout, strength, dtype], gr.File(label="LoRA"))
    inputs = [name, strength, dtype, gr.Checkbox(False, label="several"), settings.adapters, settings.combine]
    expose("export_model", export_model, inputs, gr.File(label="model"))


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "base": entry.base,
        "rank": entry.rank,
        "trigger": entry.trigger,
        "annotator": entry.annotator,
    }
