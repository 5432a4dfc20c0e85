"""Library: what adapters there are, what is in them, and how they come and go."""

import html
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion import pipelines
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.contents import Component, read_components
from hra_diffusion.formats.lora import LAYOUTS
from hra_diffusion.studio.exporting import as_lora, as_model, bring_in
from hra_diffusion.studio.library import Entry
from hra_diffusion.studio.requests import adapter_uses
from hra_diffusion.studio.session import Session
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
            with gr.Accordion("Import", open=False, elem_id="import"):
                files = gr.File(
                    label="A .zip of an adapter, its two files, or a LoRA",
                    file_count="multiple",
                    file_types=[".zip", ".safetensors", ".json"],
                    height=130,
                )
                import_name = gr.Textbox(label="Call it", elem_id="import-name")
                bring = gr.Button("Import", elem_id="import-go")
        with gr.Column(scale=7, min_width=320, elem_classes="canvas"):
            about = gr.HTML(_CHOOSE, label="card", elem_id="about")
            with gr.Column(visible=False, elem_id="doing") as doing:
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
                with gr.Accordion("Publish on the Hugging Face hub", open=False):
                    with gr.Row():
                        repository = gr.Textbox(label="Repository", placeholder="USER/NAME")
                        licence = gr.Textbox(label="Licence", placeholder="mit")
                    token = gr.Textbox(label="Your access token", type="password")
                    push = gr.Button("Publish")
                    pushed = gr.HTML("")
                with gr.Accordion("Rename or delete", open=False, elem_id="change"):
                    with gr.Row():
                        new_name = gr.Textbox(label="New name", elem_id="new-name")
                        rename = gr.Button("Rename", elem_id="rename")
                    delete = gr.Button("Delete…", variant="stop", elem_id="delete")
                    with gr.Group(visible=False, elem_classes="panel") as sure:
                        question = gr.HTML("")
                        with gr.Row():
                            yes = gr.Button("Yes, delete it for good", variant="stop", elem_id="delete-yes")
                            no = gr.Button("Keep it", elem_id="delete-no")

    @shown
    def details(name: str | None) -> Any:
        """What an adapter holds: as HTML."""
        hidden = gr.update(visible=False)
        if not name:
            return _CHOOSE, hidden, hidden, hidden
        entry = session.library.entry(name)
        return _about(entry, read_components(entry.folder)), gr.update(visible=True), hidden, hidden

    def lists() -> list[Any]:
        """Bring both lists of cards up to date."""
        return [gr.update(entries=entries(session)), gr.update(entries=entries(session))]

    @shown
    def rename_it(name: str, new_name: str) -> Any:
        """Rename an adapter; returns its new name."""
        return [gr.update(value=session.library.rename(name, new_name), entries=entries(session)), lists()[0], ""]

    @shown
    def delete_it(name: str) -> Any:
        """Delete an adapter, for good."""
        session.library.delete(name)
        return [gr.update(value=None, entries=entries(session)), lists()[0]]

    @shown
    def bring_it_in(files: list[str] | None, name: str) -> Any:
        """Import an adapter, or a LoRA as the adapter nearest to it; returns its name."""
        entry, lost = bring_in(session.model, session.library, [Path(file) for file in files or []], name)
        if lost > 0.01:
            gr.Warning(f"{lost:.0%} of this LoRA is not a rotation, and was lost.")
        return [gr.update(value=entry.name, entries=entries(session)), lists()[0], None, ""]

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

    @shown
    def push_it(name: str, repository: str, licence: str, token: str) -> str:
        """Publish an adapter on the hub with the visitor's own token; returns the commit's address."""
        if not token or not repository:
            raise ConfigError("Give a repository, USER/NAME, and an access token that may write to it.")
        folder = session.library.entry(name).folder
        return note(pipelines.push_hra_weights(folder, repository, licence=licence or None, token=token))

    both = [picker, settings.picker]
    picker.change(details, picker, [about, doing, ready, sure], api_name="adapter", show_progress="hidden")
    rename.click(rename_it, [picker, new_name], [*both, new_name], api_name="rename")
    bring.click(bring_it_in, [files, import_name], [*both, files, import_name], api_name="import_adapter")
    lora.click(export_lora, [picker, layout, strength, dtype], [exported, ready], api_name="export_lora")
    together = [picker, strength, dtype, several, settings.picker, settings.combine]
    merged.click(export_model, together, [exported, ready], api_name="export_model")
    push.click(push_it, [picker, repository, licence, token], pushed, api_name="push")
    delete.click(_ask, picker, [sure, question], api_visibility="private")
    no.click(lambda: gr.update(visible=False), None, sure, api_visibility="private")
    yes.click(delete_it, picker, both, api_name="delete").success(
        details, picker, [about, doing, ready, sure], api_visibility="private"
    )
    return picker


def _ask(name: str | None) -> Any:
    said = html.escape(str(name)[:80])
    return gr.update(visible=bool(name)), f"<p class='note'>Delete <b>{said}</b>? It cannot be brought back.</p>"


def _about(entry: Entry, components: list[Component]) -> str:
    """The card of an adapter: picture, words, numbers, and how far each layer turns."""
    said = f"What {html.escape(entry.name)} draws"
    picture = f'<img src="{data_url(entry.thumbnail, 640)}" alt="{said}">' if entry.thumbnail else ""
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
        f'<article class="about">{picture}<div><h2>{html.escape(entry.name)}</h2>'
        f"<dl>{rows}</dl></div></article>"
        f'<details class="angles" open><summary>How far each layer turns, at most {most:.1f}°</summary>'
        f"<ol>{bars}</ol></details>"
    )
