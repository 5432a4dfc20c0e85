"""Library: what adapters there are, what is in them, and how they come and go."""

import html
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion import pipelines
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.contents import Component, read_components
from hra_diffusion.formats.lora import LAYOUTS
from hra_diffusion.studio.engine.exporting import as_lora, as_model, bring_in
from hra_diffusion.studio.engine.library import Entry
from hra_diffusion.studio.engine.requests import adapter_uses
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import data_url, empty, note, shown
from hra_diffusion.studio.tabs.picker import adapter_picker, entries
from hra_diffusion.studio.tabs.settings import Settings

_DTYPES = ["fp16", "bf16", "fp32"]
_CHOOSE = empty("No adapter chosen", "Choose one on the left to see what it holds, to export it, or to rename it.")
_SHOWN_LAYERS = 60


def build(session: Session, settings: Settings) -> gr.HTML:
    """Put the tab together; returns its cards."""
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=5, min_width=300, elem_classes="side"):
            picker = adapter_picker(session, single=True, elem_id="library", label="name")
            _import(session, settings, picker)
        with gr.Column(scale=7, min_width=320, elem_classes="canvas"):
            about = gr.HTML(_CHOOSE, label="card", elem_id="about")
            with gr.Column(visible=False, elem_id="doing") as doing:
                ready = _export(session, settings, picker)
                _publish(session, picker)
                with gr.Accordion("Rename or delete", open=False, elem_id="change"):
                    _rename(session, settings, picker)
                    sure, deleted = _delete(session, settings, picker)

    @shown
    def details(name: str | None) -> Any:
        """What an adapter holds: as HTML."""
        hidden = gr.update(visible=False)
        if not name:
            return _CHOOSE, hidden, hidden, hidden
        entry = session.library.entry(name)
        return _about(entry, read_components(entry.folder)), gr.update(visible=True), hidden, hidden

    told = [about, doing, ready, sure]
    picker.change(details, picker, told, api_name="adapter", show_progress="hidden")
    deleted.success(details, picker, told, api_visibility="private")
    return picker


def _import(session: Session, settings: Settings, picker: gr.HTML) -> None:
    """Put the way in together."""
    with gr.Accordion("Import", open=False, elem_id="import"):
        files = gr.File(
            label="A .zip of an adapter, its two files, or a LoRA",
            file_count="multiple",
            file_types=[".zip", ".safetensors", ".json"],
            height=150,
        )
        import_name = gr.Textbox(label="Call it", elem_id="import-name")
        bring = gr.Button("Import", elem_id="import-go")

    @shown
    def bring_it_in(files: list[str] | None, name: str) -> Any:
        """Import an adapter, or a LoRA as the adapter nearest to it; returns its name."""
        entry, lost = bring_in(session.model, session.library, [Path(file) for file in files or []], name)
        if lost > 0.01:
            gr.Warning(f"{lost:.0%} of this LoRA is not a rotation, and was lost.")
        return [*_both_lists(session, entry.name), None, ""]

    changed = [picker, settings.picker, files, import_name]
    bring.click(bring_it_in, [files, import_name], changed, api_name="import_adapter")


def _export(session: Session, settings: Settings, picker: gr.HTML) -> gr.Column:
    """Put the ways out together; returns what shows when a file is ready."""
    with gr.Accordion("Export", open=True):
        with gr.Row():
            layout = gr.Dropdown(list(LAYOUTS), value="kohya", label="Layout", elem_id="layout")
            strength = gr.Slider(0.05, 1.5, 1, step=0.05, label="At strength", elem_id="export-strength")
            dtype = gr.Dropdown(_DTYPES, value="fp16", label="Precision", elem_id="dtype")
        with gr.Row():
            lora = gr.Button("As a LoRA", variant="primary", elem_id="export-lora")
            merged = gr.Button("As a whole model", elem_id="export-model")
        several = gr.Checkbox(
            label="The whole model with those chosen under Generate, too, at their strengths",
            elem_id="several",
        )
        with gr.Column(visible=False) as ready:
            exported = gr.File(label="Download", interactive=False, elem_id="exported")

    @shown
    def export_lora(name: str, layout: str, strength: float, dtype: str) -> Any:
        """Export an adapter as the LoRA that makes the same change to every weight; returns the file."""
        path = as_lora(session.model, session.library.entry(name), session.cache, layout, float(strength), dtype)
        return str(path), gr.update(visible=True)

    @shown
    def export_model(
        name: str, strength: float, dtype: str, several: bool, adapters: list[Any] | None, combine: str
    ) -> Any:
        """Export the base model with an adapter, or several, in its weights; returns a zip of a diffusers folder."""
        others = [use for use in adapter_uses(adapters or []) if several and use.name != name]
        uses = [*adapter_uses([{"name": name, "strength": strength}]), *others]
        return str(as_model(session.model, uses, session.cache, combine, dtype)), gr.update(visible=True)

    lora.click(export_lora, [picker, layout, strength, dtype], [exported, ready], api_name="export_lora")
    together = [picker, strength, dtype, several, settings.picker, settings.combine]
    merged.click(export_model, together, [exported, ready], api_name="export_model")
    return ready


def _publish(session: Session, picker: gr.HTML) -> None:
    """Put the way to the hub together."""
    with gr.Accordion("Publish on the Hugging Face hub", open=False):
        with gr.Row():
            repository = gr.Textbox(label="Repository", placeholder="USER/NAME")
            license = gr.Textbox(label="License", placeholder="mit")
        token = gr.Textbox(label="Your access token", type="password")
        push = gr.Button("Publish")
        pushed = gr.HTML("")

    @shown
    def push_it(name: str, repository: str, license: str, token: str) -> str:
        """Publish an adapter on the hub with the visitor's own token; returns the commit's address."""
        if not token or not repository:
            raise ConfigError("Give a repository, USER/NAME, and an access token that may write to it.")
        folder = session.library.entry(name).folder
        return note(pipelines.push_hra_weights(folder, repository, license=license or None, token=token))

    push.click(push_it, [picker, repository, license, token], pushed, api_name="push")


def _rename(session: Session, settings: Settings, picker: gr.HTML) -> None:
    """Put renaming together."""
    with gr.Row():
        new_name = gr.Textbox(label="New name", elem_id="new-name")
        rename = gr.Button("Rename", elem_id="rename")

    @shown
    def rename_it(name: str, new_name: str) -> Any:
        """Rename an adapter; returns its new name."""
        return [*_both_lists(session, session.library.rename(name, new_name)), ""]

    rename.click(rename_it, [picker, new_name], [picker, settings.picker, new_name], api_name="rename")


def _delete(session: Session, settings: Settings, picker: gr.HTML) -> tuple[gr.Group, Any]:
    """Put deleting together; returns what asks whether one is sure, and the event of having deleted."""
    delete = gr.Button("Delete…", variant="stop", elem_id="delete")
    with gr.Group(visible=False, elem_classes="panel") as sure:
        question = gr.HTML("")
        with gr.Row():
            yes = gr.Button("Yes, delete it for good", variant="stop", elem_id="delete-yes")
            no = gr.Button("Keep it", elem_id="delete-no")

    @shown
    def delete_it(name: str) -> Any:
        """Delete an adapter, for good."""
        session.library.delete(name)
        return _both_lists(session, None)

    delete.click(_ask, picker, [sure, question], api_visibility="private")
    no.click(lambda: gr.update(visible=False), None, sure, api_visibility="private")
    return sure, yes.click(delete_it, picker, [picker, settings.picker], api_name="delete")


def _both_lists(session: Session, chosen: str | None) -> list[Any]:
    """Bring both lists of cards up to date: the library's, where one is chosen then, and that of Generate."""
    return [gr.update(value=chosen, entries=entries(session)), gr.update(entries=entries(session))]


def _ask(name: str | None) -> Any:
    said = html.escape(str(name)[:80])
    return gr.update(visible=bool(name)), f"<p class='note'>Delete <b>{said}</b>? It cannot be brought back.</p>"


def _about(entry: Entry, components: list[Component]) -> str:
    """The card of an adapter: image, words, numbers, and how far each layer turns."""
    said = f"What {html.escape(entry.name)} draws"
    image = f'<img src="{data_url(entry.thumbnail, 640)}" alt="{said}">' if entry.thumbnail else ""
    parameters = sum(each.parameters for each in components)
    layers = [(each.name, layer) for each in components for layer in each.layers]
    facts = {
        "Called by": f"“{entry.trigger}”" if entry.trigger else "not said",
        "Base": entry.base or "not said",
        "Adapts": ", ".join(entry.components),
        **({"Follows": entry.annotator} if entry.annotator else {}),
        "Rank": str(entry.rank),
        "Parameters": f"{parameters:,} in {len(layers)} layers",
        "From": "the project" if entry.built_in else "this studio",
    }
    rows = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    most = max((layer.angle for _, layer in layers), default=0.0) or 1.0
    bars = "".join(
        f"<li><span>{html.escape(f'{component}.{layer.name}')}</span>"
        f'<i style="width:{layer.angle / most:.1%}"></i><b>{layer.angle:.1f}°</b></li>'
        for component, layer in sorted(layers, key=lambda each: -each[1].angle)[:_SHOWN_LAYERS]
    )
    return (
        f'<article class="about">{image}<div><h2>{html.escape(entry.name)}</h2>'
        f"<dl>{rows}</dl></div></article>"
        f'<details class="angles" open><summary>How far each layer turns, at most {most:.1f}°</summary>'
        f"<ol>{bars}</ol></details>"
    )
