"""Generate: draw, with adapters or without, and get every setting of an image back."""

import html
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.events import Progress, Reading, Waiting
from hra_diffusion.studio.engine.metadata import read_request
from hra_diffusion.studio.engine.requests import GenerateRequest
from hra_diffusion.studio.engine.session import Saved, Session
from hra_diffusion.studio.tabs.common import (
    data_url,
    empty,
    in_words,
    note,
    served,
    shown,
    stopper,
    with_request,
)
from hra_diffusion.studio.tabs.settings import Settings, settings_panel

_IDEAS = Path(__file__).parents[1] / "ideas.js"
_MOST_IDEAS = 4
_LARGER = 3
"""How much larger than it is an image is shown at most; studio.js says the same."""


@dataclass(frozen=True)
class _Canvas:
    """What is drawn, and what can be done with it."""

    stage: gr.HTML
    images: gr.Column
    """Shows when there are some: the gallery."""
    gallery: gr.Gallery
    left_out: gr.HTML
    tools: gr.Row
    restore: gr.Button
    compare: gr.Button
    both: gr.Column
    """Shows when there are two to compare: the slider."""
    slider: gr.ImageSlider
    dropped: gr.File


def _canvas(session: Session) -> _Canvas:
    """Put the canvas together."""
    stage = gr.HTML(
        _nothing_yet(session),
        label="stage",
        elem_id="stage",
        elem_classes="stage",
        js_on_load=_IDEAS.read_text(encoding="utf-8"),
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
    left_out = gr.HTML("", label="unread", elem_id="left-out")
    with gr.Row(visible=False, elem_classes="tools") as tools:
        restore = gr.Button("Restore its settings", size="sm", elem_id="restore")
        compare = gr.Button("Before / after", size="sm", elem_id="before-after")
    with gr.Column(visible=False) as both:
        gr.HTML(note("Without and with the adapters, on the same seed:"))
        slider = gr.ImageSlider(
            label="Before and after",
            show_label=False,
            elem_id="slider",
            type="filepath",
            format="png",
            interactive=False,
        )
    with gr.Accordion("Restore from a file", open=False, elem_id="restore-file"):
        dropped = gr.File(label="A PNG of the studio or of A1111", file_types=[".png"], height=150)
    return _Canvas(stage, images, gallery, left_out, tools, restore, compare, both, slider, dropped)


def build(session: Session) -> Settings:
    """Put the tab together; returns its settings, which other tabs draw with, too."""
    with gr.Row(elem_classes="split draw"):
        with gr.Column(scale=5, min_width=320, elem_classes="side"):
            settings = settings_panel(session)
        with gr.Column(scale=7, min_width=320, elem_classes="canvas"):
            canvas = _canvas(session)
    looked_at = gr.State(None)
    seed = settings.inputs[9]

    def generate(request: GenerateRequest, client: str) -> Iterator[Any]:
        """Draw images. Returns their files, which hold their settings, the seed, and the prompt's unread end."""
        saved: list[Saved] = []
        unread, hidden = "", gr.update(visible=False)
        for event in session.draw(request, client):
            if not isinstance(event, Reading | Waiting):  # the model, which knows, is there
                unread = unread or _left_out(session, request)
            if isinstance(event, Saved):
                saved.append(event)
                shown = (_gallery(session, saved), gr.skip(), gr.update(visible=True))
            else:
                shown = (gr.skip(), _going_on(event, request), gr.skip())
            yield shown[0], request.seed, unread, shown[1], shown[2], gr.skip(), hidden
        stage = "" if saved else _nothing_yet(session)
        if len(saved) < request.count:
            stage = note("Stopped.") + stage
        there = gr.update(visible=bool(saved))
        yield _gallery(session, saved), request.seed, unread, stage, there, there, hidden

    def before_after(request: GenerateRequest, client: str, looked_at: str | None) -> Iterator[Any]:
        """Draw with the adapters and, on the same seed, with the plain base. Returns both files."""
        if not request.adapters:
            raise ConfigError("There is no adapter to look at without: choose one first.")
        if looked_at:
            request = replace(request, seed=read_request(Path(looked_at)).seed)
        found: list[Saved] = []
        for wish in (request.single(0).without_adapters(), request.single(0)):
            for event in session.draw(wish, client):
                if isinstance(event, Saved):
                    found.append(event)
                else:
                    yield gr.skip(), _going_on(event, request), gr.skip()
        if len(found) < 2:
            yield gr.skip(), note("Stopped."), gr.skip()
            return
        yield tuple(served(session, each.path) for each in found), "", gr.update(visible=True)

    @shown
    def restore_from(png: str) -> list[Any]:
        """Read a PNG's settings. Returns the values of all settings, in the order of the parameters of generate."""
        request, changes = session.restore(Path(png))
        for change in changes:
            gr.Warning(html.escape(change, quote=False))
        return settings.values(session, request)

    @shown
    def restore_drawn(looked_at: str | None) -> list[Any]:
        if not looked_at:
            raise ConfigError("Nothing has been drawn yet.")
        return restore_from(looked_at)

    def insert(prompt: str, event: gr.EventData) -> str:
        words = str(event._data.get("text", ""))
        return prompt if words in prompt else f"{words}, {prompt}".rstrip(", ")

    def take(event: gr.EventData) -> tuple[str, list[dict[str, Any]]]:
        idea = event._data
        uses = [{"name": str(idea["adapter"]), "strength": 1.0}] if idea.get("adapter") else []
        return str(idea.get("prompt", "")), uses

    limit = session.config.max_waiting + 4
    drawing = {"show_progress": "hidden", "concurrency_limit": limit, "concurrency_id": "model"}
    drawn = settings.go.click(
        with_request(session, generate),
        settings.inputs,
        [canvas.gallery, seed, canvas.left_out, canvas.stage, canvas.images, canvas.tools, canvas.both],
        api_name="generate",
        **drawing,
    )
    compared = canvas.compare.click(
        with_request(session, before_after, "looked_at"),
        [*settings.inputs, looked_at],
        [canvas.slider, canvas.stage, canvas.both],
        api_name="before_after",
        **drawing,
    )
    settings.end.click(stopper(session), api_name="stop", queue=False)
    for event in (drawn, compared):  # what was said of a drawing that failed is of none any more
        event.failure(
            lambda images: "" if images else _nothing_yet(session),
            canvas.gallery,
            canvas.stage,
            api_visibility="private",
            show_progress="hidden",
        )
    canvas.restore.click(restore_drawn, looked_at, settings.inputs, api_visibility="private")
    canvas.dropped.upload(restore_from, canvas.dropped, settings.inputs, api_name="restore")
    looking = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    canvas.gallery.select(_selected, canvas.gallery, looked_at, **looking)
    canvas.gallery.change(_still_there, [canvas.gallery, looked_at], looked_at, **looking)
    canvas.stage.idea(take, None, [settings.inputs[0], settings.picker], api_visibility="private").then(
        None, js="() => document.querySelector('#generate button, button#generate').click()", api_visibility="private"
    )
    settings.picker.insert(insert, settings.inputs[0], settings.inputs[0], api_visibility="private")
    return settings


def _nothing_yet(session: Session) -> str:
    """The stage before anything is drawn: what to do, and something to begin with."""
    ideas = [(session.default_request.prompt, "")]
    for entry in session.library.entries():
        if entry.trigger and not entry.annotator and entry.base == session.model.base.name:
            ideas.insert(0, (f"{entry.trigger} in the snow", entry.name))
    buttons = "".join(
        f'<button type="button" class="idea" data-prompt="{html.escape(prompt)}" data-adapter="{html.escape(name)}">'
        f"{html.escape(prompt)}</button>"
        for prompt, name in ideas[:_MOST_IDEAS]
    )
    text = "Write what you want to see, and press Generate or Ctrl+Enter. Or begin with one of these:"
    return empty("Nothing drawn yet", text, f'<p class="ideas">{buttons}</p>')


def _selected(images: list[tuple[str, str]] | None, event: gr.SelectData) -> str | None:
    index = event.index if isinstance(event.index, int) else 0
    return images[index][0] if images and 0 <= index < len(images) else None


def _still_there(images: list[tuple[str, str]] | None, looked_at: str | None) -> str | None:
    """Return the image that is looked at: after another drawing, its first."""
    paths = [path for path, _ in images or []]
    return looked_at if looked_at in paths else next(iter(paths), None)


def _gallery(session: Session, saved: list[Saved]) -> list[tuple[str, str]]:
    return [(served(session, each.path), f"{each.request.prompt[:120]} · seed {each.request.seed}") for each in saved]


def _going_on(event: Reading | Waiting | Progress, request: GenerateRequest) -> str:
    """The image as it comes to be, and how long it takes."""
    if isinstance(event, Reading):
        return empty("Reading the model", "It is read once; this takes some seconds.")
    if isinstance(event, Waiting):
        return empty("Waiting", f"{event.before} before you: the model draws one request at a time.")
    which = f"Image {event.image + 1} of {event.images} · " if event.images > 1 else ""
    part = (event.image * event.steps + event.step) / (event.images * event.steps)
    text = f"{which}step {event.step} of {event.steps} · {in_words(event.seconds_left)} left"
    return (
        f'<figure class="preview"><img src="{data_url(event.preview)}" alt="The image so far" '
        f'style="max-width: {_LARGER * request.width}px">'
        f'<figcaption role="status">{text}</figcaption>'
        f'<progress max="1" value="{part:.3f}" aria-label="{text}"></progress></figure>'
    )


def _left_out(session: Session, request: GenerateRequest) -> str:
    parts: list[str] = []
    for name, text in (("prompt", request.prompt), ("negative prompt", request.negative_prompt)):
        if unread := session.model.painter.left_out(text):
            start = html.escape(unread[:160]) + ("…" if len(unread) > 160 else "")
            parts.append(f'<p class="note warning">The model does not read the end of the {name}: <q>{start}</q></p>')
    return "".join(parts)
