"""Sections of Generate with earlier prompts, which the browser stores, and with presets of settings by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.images.restoring import restore_preset
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import named_parameters, note
from hra_diffusion.studio.tabs.deletion import deletion
from hra_diffusion.studio.tabs.events import listen, listen_busy
from hra_diffusion.studio.tabs.generation_status import restored_settings
from hra_diffusion.studio.tabs.settings import SETTINGS, Settings, request_from_settings, settings_from_request

_HISTORY_SCRIPT = (Path(__file__).parents[1] / "prompt_history_view.js").read_text(encoding="utf-8")
_OF_ONE_IMAGE = {
    *("seed", "new_seed", "image", "mask_image", "outpaint", "outpaint_sides", "control_image", "annotator"),
}
"""Settings that a preset leaves unchanged."""
_PROMPTS = {"prompt", "negative_prompt"}


def build_history() -> None:
    """Build the section of earlier prompts; the browser alone stores and inserts them."""
    with gr.Accordion("Prompt history", open=False, elem_id="prompt-history"):
        gr.HTML(
            "",
            label="prompt history",
            html_template='<div class="prompt-history"></div>',
            js_on_load=_HISTORY_SCRIPT,
            apply_default_css=False,
        )


def build_presets(session: Session, settings: Settings, restored: gr.HTML) -> None:
    """Build the section of presets.

    Args:
        session: the studio's session.
        settings: the settings of Generate.
        restored: displays the loaded settings.
    """
    with gr.Accordion("Presets", open=False, elem_id="presets") as section:
        name = gr.Dropdown(
            [],
            value=None,
            label="Preset of settings",
            info="Choose one, or type a new name",
            allow_custom_value=True,
            elem_id="preset-name",
        )
        prompts = gr.Checkbox(label="With the prompts", elem_id="preset-prompts")
        with gr.Row(elem_classes="tools"):
            load = gr.Button("Load", size="sm", elem_id="load-preset")
            save = gr.Button("Save", size="sm", elem_id="save-preset")
            delete = gr.Button("Delete…", size="sm", variant="stop", elem_id="delete-preset")
        confirmation, confirm = deletion(delete, name)

    def choices() -> Any:
        return gr.update(choices=list(session.presets.all()))

    def save_and_choose(*values: Any) -> list[Any]:
        saved = preset_saver(session)(*values)
        return [gr.update(choices=list(session.presets.all()), value=saved), note(f"Saved the preset {saved}.")]

    def load_preset(name: str | None) -> list[Any]:
        values, request, changes = preset_values(session, name)
        updates = [values.get(setting, gr.skip()) for setting in SETTINGS]
        return [*updates, restored_settings(request, changes)]

    def delete_preset(name: str | None) -> list[Any]:
        session.presets.delete_preset(name)
        return [gr.update(choices=list(session.presets.all()), value=None), gr.update(visible=False)]

    listen(section.expand, choices, None, name, queue=False)
    listen(load.click, load_preset, name, [*settings.components, restored])
    listen_busy(save, "Saving…", save_and_choose, [*settings.components, name, prompts], [name, restored])
    listen_busy(confirm, "Deleting…", delete_preset, name, [name, confirmation])


def preset_values(session: Session, name: object) -> tuple[dict[str, Any], GenerateRequest, list[str]]:
    """Return the values of a preset by setting, its request, and a sentence for every setting left out."""
    settings = session.presets.settings(name)
    request, changes = restore_preset(settings, session.worker.bases, session.library, session.default_request)
    values = dict(zip(SETTINGS, settings_from_request(session, request), strict=True)) | {"count": request.count}
    kept = _OF_ONE_IMAGE if settings.keys() >= _PROMPTS else _OF_ONE_IMAGE | _PROMPTS
    return {setting: value for setting, value in values.items() if setting not in kept}, request, changes


def preset_saver(session: Session) -> Callable[..., str]:
    """Return a handler that saves the values of the settings by a name, with or without the prompts."""

    def save_preset(*values: Any) -> str:
        """Save settings as a preset, which replaces an earlier one of the name. Returns the name."""
        settings = dict(zip(SETTINGS, values, strict=False)) | dict.fromkeys(_OF_ONE_IMAGE)
        name, prompts = values[len(SETTINGS) : len(SETTINGS) + 2]
        return session.presets.save_preset(name, request_from_settings(session, settings), prompts=bool(prompts))

    return named_parameters(save_preset, *SETTINGS, "name", "prompts")
