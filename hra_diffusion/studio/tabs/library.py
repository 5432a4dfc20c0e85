"""The Library tab: details of adapters, import, export, publishing, renaming and deleting."""

import html
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.formats.contents import Component, read_components
from hra_diffusion.formats.lora import LAYOUTS
from hra_diffusion.studio.engine.adapters.entry import Entry
from hra_diffusion.studio.engine.exporting import (
    import_adapter,
    publish,
    uses_to_merge,
    write_lora,
    write_merged_model,
)
from hra_diffusion.studio.engine.generation.requests import Combine
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import empty_state, note, thumbnail_url
from hra_diffusion.studio.tabs.deletion import deletion
from hra_diffusion.studio.tabs.events import listen, listen_busy
from hra_diffusion.studio.tabs.labels import LABELS
from hra_diffusion.studio.tabs.picker import adapter_picker, card_entries
from hra_diffusion.studio.tabs.settings import Settings
from hra_diffusion.studio.tabs.similar_adapters import build_similar_panel

_DTYPES = ["fp16", "bf16", "fp32"]
_NO_SELECTION = empty_state("No adapter selected", "Select an adapter to see its details, to export or to rename it.")
_MAX_LAYERS = 60


def build_library_tab(session: Session, settings: Settings) -> gr.HTML:
    """Build the tab; return its adapter cards."""
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=5, min_width=300, elem_classes="side"):
            picker = adapter_picker(session, single=True, elem_id="library", label="name")
            _import_panel(session, settings, picker)
        with gr.Column(scale=7, min_width=320, elem_classes="results"):
            details = gr.HTML(_NO_SELECTION, label="details", elem_id="adapter-details")
            with gr.Column(visible=False, elem_id="adapter-actions") as actions:
                exported = _export_panel(session, settings, picker)
                build_similar_panel(session, picker)
                _publish_panel(session, picker)
                with gr.Accordion("Rename or delete", open=False, elem_id="rename-delete"):
                    _rename_panel(session, settings, picker)
                    confirmation, deletion = _delete_panel(session, settings, picker)

    def display(name: str | None) -> Any:
        hidden = gr.update(visible=False)
        if not name:
            return _NO_SELECTION, hidden, hidden, hidden
        entry = session.library.entry(name)
        return _details(entry, read_components(entry.folder)), gr.update(visible=True), hidden, hidden

    outputs = [details, actions, exported, confirmation]
    listen(picker.change, display, picker, outputs)
    listen(deletion.success, display, picker, outputs)
    return picker


def _import_panel(session: Session, settings: Settings, picker: gr.HTML) -> None:
    with gr.Accordion("Import", open=False, elem_id="import"):
        files = gr.File(
            label="Adapter (a .zip or its two files) or LoRA",
            file_count="multiple",
            file_types=[".zip", ".safetensors", ".json"],
            height=150,
        )
        name = gr.Textbox(label="Name", elem_id="import-name")
        button = gr.Button("Import", elem_id="import-button")

    def import_files(files: list[str] | None, name: str, base: str | None) -> Any:
        entry, lost = import_adapter(session.worker, session.library, [Path(file) for file in files or []], name, base)
        if lost > 0.01:
            gr.Warning(f"{lost:.0%} of this LoRA is not a rotation and was lost.")
        return [*_update_cards(session, entry.name), None, ""]

    outputs = [picker, settings.adapters, files, name]
    listen_busy(button, "Importing…", import_files, [files, name, settings.base], outputs)


def _export_panel(session: Session, settings: Settings, picker: gr.HTML) -> gr.Column:
    """Build the export panel; return the column of the exported file."""
    with gr.Accordion("Export", open=True):
        with gr.Row():
            layout = gr.Dropdown(list(LAYOUTS), value="kohya", label="LoRA layout", elem_id="layout")
            strength = gr.Slider(0.05, 1.5, 1, step=0.05, label="Strength", elem_id="export-strength")
            dtype = gr.Dropdown(_DTYPES, value="fp16", label="Precision (dtype)", elem_id="dtype")
        with gr.Row():
            lora = gr.Button("Export LoRA", variant="primary", elem_id="export-lora")
            merged = gr.Button("Export merged model", elem_id="export-model")
        several = gr.Checkbox(
            label="Also merge the adapters chosen under Generate, at their strengths",
            elem_id="merge-several",
        )
        with gr.Column(visible=False) as column:
            exported = gr.File(label="Download", interactive=False, elem_id="exported")

    def export_lora(name: str, layout: str, strength: float, dtype: str) -> Any:
        entry = session.library.entry(name)
        path = write_lora(session.worker, entry, session.cache, layout, float(strength), dtype)
        return str(path), gr.update(visible=True)

    def export_model(
        name: str, strength: float, dtype: str, several: bool, adapters: list[Any] | None, combine: Combine
    ) -> Any:
        uses = uses_to_merge(name, strength, adapters if several else None)
        return str(write_merged_model(session.worker, uses, session.cache, combine, dtype)), gr.update(visible=True)

    listen_busy(lora, "Exporting…", export_lora, [picker, layout, strength, dtype], [exported, column])
    inputs = [picker, strength, dtype, several, settings.adapters, settings.combine]
    listen_busy(merged, "Exporting…", export_model, inputs, [exported, column])
    return column


def _publish_panel(session: Session, picker: gr.HTML) -> None:
    with gr.Accordion("Publish on the Hugging Face Hub", open=False):
        with gr.Row():
            repository = gr.Textbox(label="Repository", placeholder="USER/NAME")
            license = gr.Textbox(label="License", placeholder="mit")
        token = gr.Textbox(label="Access token", info="With write access to the repository", type="password")
        button = gr.Button("Publish")
        result = gr.HTML("")

    def push(name: str, repository: str, license: str, token: str) -> str:
        return note(publish(session.library.entry(name), repository, license, token))

    listen_busy(button, "Publishing…", push, [picker, repository, license, token], result)


def _rename_panel(session: Session, settings: Settings, picker: gr.HTML) -> None:
    with gr.Row():
        new_name = gr.Textbox(label=LABELS["new_name"], elem_id="new-name")
        button = gr.Button("Rename", elem_id="rename")

    def rename_adapter(name: str, new_name: str) -> Any:
        return [*_update_cards(session, session.library.rename(name, new_name)), ""]

    listen_busy(button, "Renaming…", rename_adapter, [picker, new_name], [picker, settings.adapters, new_name])


def _delete_panel(session: Session, settings: Settings, picker: gr.HTML) -> tuple[gr.Group, Any]:
    """Build the delete panel; return its confirmation and the event of a deletion."""
    delete = gr.Button("Delete…", variant="stop", elem_id="delete")
    confirmation, confirm = deletion(delete, picker)

    def delete_adapter(name: str) -> Any:
        session.library.delete(name)
        return _update_cards(session, None)

    return confirmation, listen_busy(confirm, "Deleting…", delete_adapter, picker, [picker, settings.adapters])


def _update_cards(session: Session, selected: str | None) -> list[Any]:
    """Return updates of the cards of Library, with an adapter to select, and of Generate."""
    entries = card_entries(session)
    return [gr.update(value=selected, entries=entries), gr.update(entries=entries)]


def _details(entry: Entry, components: list[Component]) -> str:
    """Return the HTML of an adapter's details: thumbnail, facts and rotation angles."""
    name = html.escape(entry.name)
    url = thumbnail_url(entry.thumbnail, 640)
    image = f'<img src="{url}" alt="Image generated with {name}">' if url else ""
    parameters = sum(component.parameters for component in components)
    layers = sum(len(component.layers) for component in components)
    facts = {
        "Prompt": f"“{entry.trigger}”" if entry.trigger else "unknown",
        "Base": entry.base or "unknown",
        "Components": ", ".join(entry.components),
        **({"Annotator": entry.annotator} if entry.annotator else {}),
        "Rank": str(entry.rank),
        "Parameters": f"{parameters:,} in {layers} layers",
        "Source": "the project" if entry.built_in else "this studio",
    }
    rows = "".join(f"<dt>{label}</dt><dd>{html.escape(value)}</dd>" for label, value in facts.items())
    return (
        f'<article class="adapter-details">{image}<div><h2>{name}</h2><dl>{rows}</dl></div></article>'
        f"{_rotation_angles(components)}"
    )


def _rotation_angles(components: list[Component]) -> str:
    """Return the HTML of the layers with the largest rotation angles, as bars."""
    layers = [(component.name, layer) for component in components for layer in component.layers]
    mean = sum(layer.angle for _, layer in layers) / max(1, len(layers))
    largest = max((layer.angle for _, layer in layers), default=0.0)
    bars = "".join(
        f"<li><span>{html.escape(f'{component}.{layer.name}')}</span>"
        f'<i style="width:{layer.angle / (largest or 1):.1%}"></i><b>{layer.angle:.1f}°</b></li>'
        for component, layer in sorted(layers, key=lambda item: -item[1].angle)[:_MAX_LAYERS]
    )
    return (
        f'<details class="angles"><summary>Layers are rotated by up to {largest:.0f}°, {mean:.0f}° on average. 0° is '
        "the base model; no angle tells how good an adapter is.</summary>"
        f'<ol tabindex="0" aria-label="Layers with the largest angles">{bars}</ol></details>'
    )
