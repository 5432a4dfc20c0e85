"""The Generate tab as seen by other tabs, and the settings of an image that are loaded into it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.events import listen
from hra_diffusion.studio.tabs.generation_status import restored_settings
from hra_diffusion.studio.tabs.settings import Settings, settings_from_request


@dataclass(frozen=True)
class GenerateTab:
    """The parts of the tab that other tabs use, or that the browser remembers."""

    settings: Settings
    gallery: gr.Gallery
    status: gr.HTML
    restored: gr.HTML
    """Displays the settings that were loaded last."""
    tabs: gr.Tabs
    """The tabs of the page, to open this one."""


def load_settings(
    session: Session,
    generate: GenerateTab,
    trigger: Any,
    find_png: Callable[..., str | Path | None],
    inputs: Any,
) -> Any:
    """Load the settings of an image into Generate on an event, open the tab, and say what was loaded and left out.

    Args:
        session: the studio's session.
        generate: the tab.
        trigger: the event.
        find_png: returns the image's file, given the values of the inputs.
        inputs: components.

    Returns:
        The dependency.
    """

    def load_png(*values: Any) -> list[Any]:
        request, changes = session.restore(find_png(*values))
        fields = settings_from_request(session, request)
        return [*fields, restored_settings(request, changes), gr.update(selected="generate")]

    return listen(trigger, load_png, inputs, [*generate.settings.components, generate.restored, generate.tabs])
