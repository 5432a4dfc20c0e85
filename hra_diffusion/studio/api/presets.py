"""Endpoints of presets: list, load, save and delete them."""

from typing import Any

import gradio as gr

from hra_diffusion.studio.api.endpoints import expose, expose_typed
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.presets import preset_saver, preset_values
from hra_diffusion.studio.tabs.settings import Settings


def expose_presets(session: Session, settings: Settings) -> None:
    """Add the endpoints."""

    def presets() -> list[str]:
        """Return the names of all presets of settings."""
        return list(session.presets.all())

    def load_preset(name: str) -> tuple[dict[str, Any], list[str]]:
        """Load a preset. Returns its settings by the parameters of /generate, and what was left out."""
        values, _, changes = preset_values(session, name)
        return values, changes

    def delete_preset(name: str) -> str:
        """Delete a preset. Returns its name."""
        return session.presets.delete_preset(name)

    for handler in (presets, delete_preset):
        expose_typed(handler.__name__, handler)
    name = gr.Textbox(label="name")
    expose("load_preset", load_preset, [name], [gr.JSON(label="settings"), gr.JSON(label="changes")])
    inputs = [*settings.components, name, gr.Checkbox(False, label="prompts")]
    expose("save_preset", preset_saver(session), inputs, gr.Textbox(label="name"))
