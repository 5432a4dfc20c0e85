"""The Generate tab: images with or without adapters, and the settings of earlier images."""

import html
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.events import Loading, Queued
from hra_diffusion.studio.engine.metadata import read_request
from hra_diffusion.studio.engine.requests import GenerateRequest
from hra_diffusion.studio.engine.session import SavedImage, Session
from hra_diffusion.studio.tabs.common import note, reports_errors, served_copy, stop_handler
from hra_diffusion.studio.tabs.generation_status import example_prompts, generation_progress, truncation_warnings
from hra_diffusion.studio.tabs.settings import Settings, request_handler, settings_from_request
from hra_diffusion.studio.tabs.settings_panel import SettingsPanel, settings_panel

_EXAMPLES_SCRIPT = Path(__file__).parents[1] / "example_prompts.js"


@dataclass(frozen=True)
class _Results:
    """The components of the generated images."""

    status: gr.HTML
    """The progress and preview of a generation, or example prompts before the first one."""
    images: gr.Column
    """Contains the gallery; visible from the first image on."""
    gallery: gr.Gallery
    truncated: gr.HTML
    tools: gr.Row
    load_settings: gr.Button
    compare: gr.Button
    before_after: gr.Column
    """Contains the slider; visible with two images to compare."""
    slider: gr.ImageSlider
    png: gr.File
    selected: gr.State
    """Path of the selected image."""


def build_generate_tab(session: Session) -> Settings:
    """Build the tab; return its settings, which other tabs use, too."""
    with gr.Row(elem_classes="split generate-tab"):
        with gr.Column(scale=5, min_width=320, elem_classes="side"):
            panel = settings_panel(session)
        with gr.Column(scale=7, min_width=320, elem_classes="results"):
            results = _results(session)
    _connect_generation(session, panel, results)
    _connect_selection(results)
    _connect_load_settings(session, panel.settings, results)
    _connect_prompt(panel.settings, results)
    return panel.settings


def _results(session: Session) -> _Results:
    status = gr.HTML(
        example_prompts(session),
        label="status",
        elem_id="generation-status",
        js_on_load=_EXAMPLES_SCRIPT.read_text(encoding="utf-8"),
    )
    with gr.Column(visible=False) as images:
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
    with gr.Row(visible=False, elem_classes="tools") as tools:
        load_settings = gr.Button("Load settings", size="sm", elem_id="load-settings")
        compare = gr.Button("Before / after", size="sm", elem_id="before-after")
    with gr.Column(visible=False) as before_after:
        gr.HTML(note("Without and with the adapters, same seed:"))
        slider = gr.ImageSlider(
            label="Before and after",
            show_label=False,
            elem_id="slider",
            type="filepath",
            format="png",
            interactive=False,
        )
    with gr.Accordion("Load settings from an image (PNG info)", open=False, elem_id="png-info"):
        png = gr.File(label="PNG file of the studio or of A1111", file_types=[".png"], height=150)
    selected = gr.State(None)
    return _Results(
        status, images, gallery, truncated, tools, load_settings, compare, before_after, slider, png, selected
    )


def _connect_generation(session: Session, panel: SettingsPanel, results: _Results) -> None:
    """Connect the buttons Generate, Before / after and Stop."""
    settings = panel.settings
    options = {
        "show_progress": "hidden",
        "concurrency_limit": session.config.max_waiting + 4,
        "concurrency_id": "model",
    }
    generation = panel.generate.click(
        request_handler(session, _generate_images),
        settings.components,
        [
            results.gallery,
            settings.seed,
            results.truncated,
            results.status,
            results.images,
            results.tools,
            results.before_after,
        ],
        api_name="generate",
        **options,
    )
    comparison = results.compare.click(
        request_handler(session, _before_after, "selected"),
        [*settings.components, results.selected],
        [results.slider, results.status, results.before_after],
        api_name="before_after",
        **options,
    )
    panel.stop.click(stop_handler(session), api_name="stop", queue=False)
    for event in (generation, comparison):  # an error removes the status of the failed generation
        event.failure(
            lambda images: "" if images else example_prompts(session),
            results.gallery,
            results.status,
            api_visibility="private",
            show_progress="hidden",
        )


def _generate_images(session: Session, request: GenerateRequest, client: str) -> Iterator[Any]:
    """Generate images. Returns files that contain their settings, the seed, and the truncated end of the prompt."""
    saved: list[SavedImage] = []
    truncated, hidden = "", gr.update(visible=False)
    for event in session.generate(request, client):
        if not isinstance(event, Loading | Queued):  # the tokenizers are loaded
            truncated = truncated or truncation_warnings(session, request)
        if isinstance(event, SavedImage):
            saved.append(event)
            gallery, status, column = _gallery_items(session, saved), gr.skip(), gr.update(visible=True)
        else:
            gallery, status, column = gr.skip(), generation_progress(event, request), gr.skip()
        yield gallery, request.seed, truncated, status, column, gr.skip(), hidden
    status = "" if saved else example_prompts(session)
    if len(saved) < request.count:
        status = note("Stopped.") + status
    visible = gr.update(visible=bool(saved))
    yield _gallery_items(session, saved), request.seed, truncated, status, visible, visible, hidden


def _before_after(session: Session, request: GenerateRequest, client: str, selected: str | None) -> Iterator[Any]:
    """Generate an image without and with the adapters, from the same seed. Returns both files."""
    if not request.adapters:
        raise ConfigError("Before / after needs an adapter: choose one first.")
    if selected:
        request = replace(request, seed=read_request(Path(selected)).seed)
    saved: list[SavedImage] = []
    for variant in (request.single(0).without_adapters(), request.single(0)):
        for event in session.generate(variant, client):
            if isinstance(event, SavedImage):
                saved.append(event)
            else:
                yield gr.skip(), generation_progress(event, request), gr.skip()
    if len(saved) < 2:
        yield gr.skip(), note("Stopped."), gr.skip()
        return
    yield tuple(served_copy(session, image.path) for image in saved), "", gr.update(visible=True)


def _connect_selection(results: _Results) -> None:
    """Let the gallery select an image; the first of new images is selected by default."""
    options = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    results.gallery.select(_selected_path, results.gallery, results.selected, **options)
    results.gallery.change(_update_selected, [results.gallery, results.selected], results.selected, **options)


def _connect_load_settings(session: Session, settings: Settings, results: _Results) -> None:
    @reports_errors
    def load_settings(png: str) -> list[Any]:
        """Load the settings of a PNG. Returns the settings' values, in the order of the parameters of /generate."""
        if not isinstance(png, str):
            raise ConfigError("There is no image to read settings from: choose a PNG file.")
        request, changes = session.restore(Path(png))
        for change in changes:
            gr.Warning(html.escape(change, quote=False))
        return settings_from_request(session, request)

    @reports_errors
    def load_selected(selected: str | None) -> list[Any]:
        if not selected:
            raise ConfigError("No image is selected: generate one first.")
        return load_settings(selected)

    results.load_settings.click(load_selected, results.selected, settings.components, api_visibility="private")
    results.png.upload(load_settings, results.png, settings.components, api_name="restore")


def _connect_prompt(settings: Settings, results: _Results) -> None:
    """Let example prompts start a generation, and adapter cards insert their trigger word."""

    def use_example(event: gr.EventData) -> tuple[str, list[dict[str, Any]]]:
        example = event._data
        uses = [{"name": str(example["adapter"]), "strength": 1.0}] if example.get("adapter") else []
        return str(example.get("prompt", "")), uses

    def insert_trigger(prompt: str, event: gr.EventData) -> str:
        text = str(event._data.get("text", ""))
        return prompt if text in prompt else f"{text}, {prompt}".rstrip(", ")

    results.status.example(use_example, None, [settings.prompt, settings.adapters], api_visibility="private").then(
        None, js="() => document.querySelector('#generate button, button#generate').click()", api_visibility="private"
    )
    settings.adapters.insert(insert_trigger, settings.prompt, settings.prompt, api_visibility="private")


def _selected_path(images: list[tuple[str, str]] | None, event: gr.SelectData) -> str | None:
    index = event.index if isinstance(event.index, int) else 0
    return images[index][0] if images and 0 <= index < len(images) else None


def _update_selected(images: list[tuple[str, str]] | None, selected: str | None) -> str | None:
    """Return the selected image, or the first image if the gallery no longer contains it."""
    paths = [path for path, _ in images or []]
    return selected if selected in paths else next(iter(paths), None)


def _gallery_items(session: Session, saved: list[SavedImage]) -> list[tuple[str, str]]:
    """Return files and captions for the gallery."""
    return [
        (served_copy(session, image.path), f"{image.request.prompt[:120]} · seed {image.request.seed}")
        for image in saved
    ]
