"""The Generate tab: images with or without adapters, and the settings of earlier images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.generation.events import Loading, Queued
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.images.image_store import SavedImage
from hra_diffusion.studio.engine.images.metadata import read_request
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import gallery_items, model_options, note, served_copy, stop_handler
from hra_diffusion.studio.tabs.events import listen, listen_after, listen_busy
from hra_diffusion.studio.tabs.first_visit import first_visit
from hra_diffusion.studio.tabs.generation_status import generation_progress, truncation_warnings
from hra_diffusion.studio.tabs.loading_settings import GenerateTab, load_settings
from hra_diffusion.studio.tabs.presets import build_history, build_presets
from hra_diffusion.studio.tabs.prompt_list import build_prompt_list
from hra_diffusion.studio.tabs.queue_view import build_queue
from hra_diffusion.studio.tabs.settings import Settings, handle_request
from hra_diffusion.studio.tabs.settings_panel import SettingsPanel, settings_panel

_EXAMPLES_SCRIPT = Path(__file__).parents[1] / "example_prompts.js"


@dataclass(frozen=True)
class _Results:
    """The components of the generated images."""

    status: gr.HTML
    """The progress and preview of a generation, or the first visit before the first one."""
    gallery: gr.Gallery
    truncated: gr.HTML
    load_settings: gr.Button
    compare: gr.Button
    slider: gr.ImageSlider
    png: gr.File
    selected: gr.State
    """Path of the selected image."""
    restored: gr.HTML
    """The settings that were loaded last."""


def build_generate_tab(session: Session, tabs: gr.Tabs) -> GenerateTab:
    """Build the tab, one of the page's tabs; return its parts for others."""
    with gr.Row(elem_classes="split generate-tab"):
        with gr.Column(scale=5, min_width=320, elem_classes="side"):
            panel = settings_panel(session)
            more_settings = gr.Column()
        with gr.Column(scale=7, min_width=320, elem_classes="results"):
            results = _results(session)
            build_queue(session)
    with more_settings:
        build_presets(session, panel.settings, results.restored)
        build_history()
        of_list = build_prompt_list(session, panel.settings, results.gallery, results.status)
    _connect_generation(session, panel, results, of_list)
    _connect_selection(results)
    _connect_examples(panel.settings, results)
    tab = GenerateTab(panel.settings, results.gallery, results.status, results.restored, tabs)
    _connect_load_settings(session, tab, results)
    return tab


def _results(session: Session) -> _Results:
    """Build the components; studio.css hides the gallery, its actions and the slider as long as they have no images."""
    status = gr.HTML(
        first_visit(session),
        label="status",
        elem_id="generation-status",
        js_on_load=_EXAMPLES_SCRIPT.read_text(encoding="utf-8"),
    )
    with gr.Column(elem_id="images-area"):
        gallery = gr.Gallery(
            label="Images",
            show_label=False,
            elem_id="images",
            columns=2,
            height="auto",
            object_fit="contain",
            type="filepath",
            format="png",
            buttons=["download", "fullscreen"],
            interactive=False,
        )
    truncated = gr.HTML("", label="truncated prompts", elem_id="truncated")
    with gr.Row(elem_id="image-tools", elem_classes="tools"):
        load_settings = gr.Button("Load settings", size="sm", elem_id="load-settings")
        compare = gr.Button("Before / after", size="sm", elem_id="before-after")
    with gr.Column(elem_id="slider-area"):
        gr.HTML(note("Without and with the adapters, same seed:"))
        slider = gr.ImageSlider(
            label="Before and after",
            show_label=False,
            elem_id="slider",
            type="filepath",
            format="png",
            interactive=False,
        )
    restored = gr.HTML("", label="restored settings", elem_id="restored")
    with gr.Accordion("Load settings from an image (PNG info)", open=False, elem_id="png-info"):
        png = gr.File(label="PNG file of the studio or of A1111", file_types=[".png"], height=150)
    selected = gr.State(None)
    return _Results(status, gallery, truncated, load_settings, compare, slider, png, selected, restored)


def _connect_generation(session: Session, panel: SettingsPanel, results: _Results, of_list: Any) -> None:
    """Connect the buttons Generate, Before / after and Stop; ``of_list`` is the event of a list of prompts."""
    settings = panel.settings
    options = model_options(session)
    generation = listen_busy(
        panel.generate,
        "Generating…",
        handle_request(session, _generate_images),
        settings.components,
        [results.gallery, settings.seed, results.truncated, results.status, results.slider],
        **options,
    )
    comparison = listen_busy(
        results.compare,
        "Generating…",
        handle_request(session, _before_after, "images", "selected"),
        [*settings.components, results.gallery, results.selected],
        [results.slider, results.status],
        **options,
    )
    listen(panel.stop.click, stop_handler(session), queue=False)
    for event in (generation, comparison, of_list):  # an error removes the status of the failed generation
        listen(
            event.failure,
            lambda images: "" if images else first_visit(session),
            results.gallery,
            results.status,
        )


def _generate_images(session: Session, request: GenerateRequest, client: str) -> Iterator[Any]:
    """Generate images: update the gallery, the seed, warnings of the prompts' ends, and the status."""
    saved: list[SavedImage] = []
    truncated, slider, measured = "", None, False
    for event in session.generate(request, client):
        if not measured and not isinstance(event, Loading | Queued):  # the tokenizers are loaded
            truncated, measured = truncation_warnings(session.truncated_prompts(request)), True
        if isinstance(event, SavedImage):
            saved.append(event)
            gallery, status = gallery_items(session, saved), gr.skip()
        else:
            gallery, status = gr.skip(), generation_progress(event, request)
        yield gallery, request.seed, truncated, status, slider
    gallery = gallery_items(session, saved) if saved else gr.skip()  # earlier images stay
    status = "" if len(saved) == request.count else note("Stopped.")
    yield gallery, request.seed, truncated, status, slider


def _before_after(
    session: Session, request: GenerateRequest, client: str, images: list[tuple[str, str]] | None, selected: str | None
) -> Iterator[Any]:
    """Generate the selected image without and with its adapters; without one, an image of the form's settings."""
    if selected := _update_selected(images, selected):
        request = read_request(Path(selected))
    if not request.adapters:
        which = "this image has none" if selected else "choose one first"
        raise ConfigError(f"Before / after needs an adapter: {which}.")
    saved: list[SavedImage] = []
    for variant in (request.single(0).without_adapters(), request.single(0)):
        for event in session.generate(variant, client):
            if isinstance(event, SavedImage):
                saved.append(event)
            else:
                yield gr.skip(), generation_progress(event, request)
    if len(saved) < 2:
        yield gr.skip(), note("Stopped.")
        return
    yield tuple(served_copy(session, image.path) for image in saved), ""


def _connect_selection(results: _Results) -> None:
    """Let the gallery select an image; the first of new images is selected by default."""
    listen(results.gallery.select, _selected_path, results.gallery, results.selected, queue=False)
    inputs = [results.gallery, results.selected]
    listen(results.gallery.change, _update_selected, inputs, results.selected, queue=False)


def _connect_load_settings(session: Session, tab: GenerateTab, results: _Results) -> None:
    """Load settings from the selected image or from a file."""

    def selected_png(images: list[tuple[str, str]] | None, selected: str | None) -> str:
        selected = _update_selected(images, selected)  # the event that updates it may still be on its way
        if not selected:
            raise ConfigError("No image is selected: generate one first.")
        return selected

    load_settings(session, tab, results.load_settings.click, selected_png, [results.gallery, results.selected])
    upload = load_settings(session, tab, results.png.upload, lambda png: png, results.png)
    listen_after(upload, lambda: None, None, results.png, queue=False)  # free for the next file


def _connect_examples(settings: Settings, results: _Results) -> None:
    """Let example prompts start a generation."""

    def use_example(event: gr.EventData) -> tuple[str, list[dict[str, Any]]]:
        example = event._data
        uses = [{"name": str(example["adapter"]), "strength": 1.0}] if example.get("adapter") else []
        return str(example.get("prompt", "")), uses

    chosen = listen(results.status.example, use_example, None, [settings.prompt, settings.adapters])
    click = "() => document.querySelector('#generate button, button#generate').click()"
    listen(chosen.then, None, js=click)


def _selected_path(images: list[tuple[str, str]] | None, event: gr.SelectData) -> str | None:
    index = event.index if isinstance(event.index, int) else 0
    return images[index][0] if images and 0 <= index < len(images) else None


def _update_selected(images: list[tuple[str, str]] | None, selected: str | None) -> str | None:
    """Return the selected image, or the first image if the gallery no longer contains it."""
    paths = [path for path, _ in images or []]
    return selected if selected in paths else next(iter(paths), None)
