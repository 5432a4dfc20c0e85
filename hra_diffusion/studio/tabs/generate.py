"""Generate: draw, with adapters or without, and get every setting of a picture back."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.studio.conditions import GIVEN, OWN
from hra_diffusion.studio.events import Progress, Reading, Waiting
from hra_diffusion.studio.metadata import read_request
from hra_diffusion.studio.requests import DrawRequest
from hra_diffusion.studio.session import Saved, Session
from hra_diffusion.studio.tabs import follow
from hra_diffusion.studio.tabs.common import (
    client_of,
    data_url,
    empty,
    in_words,
    note,
    served,
    shown,
    with_request,
)
from hra_diffusion.studio.tabs.picker import adapter_picker

_NOTHING_YET = empty("Nothing drawn yet", "Write what you want to see, and press Generate or Ctrl+Enter.")
_LARGER = 3
"""How much larger than it is a picture is shown at most; studio.js says the same."""
_MIX = [("Together (their mean on the rotation group)", "lie"), ("One after the other (product)", "product")]


@dataclass(frozen=True)
class Settings:
    """The components that say what to draw, in the order of `SETTINGS`."""

    inputs: list[Any]
    picker: gr.HTML
    combine: gr.Radio
    go: gr.Button
    end: gr.Button

    def values(self, session: Session, request: DrawRequest) -> list[Any]:
        """What they show for a request; pictures that are not among the uploads any more are left out."""
        said = request.to_json()
        order = ("prompt", "negative_prompt", "adapters", "combine", "steps", "guidance_scale", "width", "height")
        return [
            *(said[name] for name in order),
            request.scheduler,
            request.seed,
            False,
            1,
            _kept(session, request.image),
            request.image_strength,
            _kept(session, request.condition),
            GIVEN if request.condition else OWN,
            request.control_start,
            request.control_end,
        ]


def build(session: Session) -> Settings:
    """Put the tab together; returns its settings, which other tabs draw with, too."""
    with gr.Row(elem_classes="split draw"):
        with gr.Column(scale=5, min_width=320, elem_classes="side"):
            settings = _settings(session)
        with gr.Column(scale=7, min_width=320, elem_classes="canvas"):
            stage = gr.HTML(_NOTHING_YET, label="stage", elem_id="stage", elem_classes="stage")
            with gr.Column(visible=False) as pictures:
                gallery = gr.Gallery(
                    label="Pictures",
                    show_label=False,
                    elem_id="pictures",
                    columns=2,
                    height="auto",
                    object_fit="contain",
                    format="png",
                    buttons=["download", "fullscreen"],
                    interactive=False,
                )
            left_out = gr.HTML("", label="unread", elem_id="left-out")
            with gr.Row(visible=False, elem_classes="tools") as tools:
                restore = gr.Button("Restore its settings", size="sm", elem_id="restore")
                compare = gr.Button("Before / after", size="sm", elem_id="before-after")
            with gr.Column(visible=False) as both:
                slider = gr.ImageSlider(
                    label="Without and with the adapters, on the same seed",
                    elem_id="slider",
                    type="filepath",
                    format="png",
                    interactive=False,
                )
            with gr.Accordion("Restore from a file", open=False, elem_id="restore-file"):
                dropped = gr.File(label="A PNG of the studio or of A1111", file_types=[".png"], height=110)
    drawn, at = gr.State([]), gr.State(0)
    seed = settings.inputs[9]

    def generate(request: DrawRequest, client: str) -> Iterator[Any]:
        """Draw pictures. Returns their files, which hold their settings, the seed, and the prompt's unread end."""
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
            yield *shown[:1], request.seed, unread, shown[1], gr.skip(), shown[2], gr.skip(), hidden
        stage = "" if saved else _NOTHING_YET
        if len(saved) < request.count:
            stage = note("Stopped.") + stage
        paths, there = [str(each.path) for each in saved], gr.update(visible=bool(saved))
        yield _gallery(session, saved), request.seed, unread, stage, paths, there, there, hidden

    def before_after(request: DrawRequest, client: str) -> Iterator[Any]:
        """Draw with the adapters and, on the same seed, with the plain base. Returns both files."""
        if not request.adapters:
            raise ConfigError("There is no adapter to look at without: choose one first.")
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
        return settings.values(session, read_request(Path(png)))

    @shown
    def restore_drawn(paths: list[str], index: int) -> list[Any]:
        if not paths:
            raise ConfigError("Nothing has been drawn yet.")
        return settings.values(session, read_request(Path(paths[min(index, len(paths) - 1)])))

    def stop(asker: gr.Request) -> None:
        """Stop what this client is having drawn, within a step."""
        session.stop(client_of(asker))

    def insert(prompt: str, event: gr.EventData) -> str:
        words = str(event._data.get("text", ""))
        return prompt if words in prompt else f"{words}, {prompt}".rstrip(", ")

    limit = session.config.max_waiting + 4
    drawing = {"show_progress": "hidden", "concurrency_limit": limit, "concurrency_id": "model"}
    settings.go.click(
        with_request(session, generate),
        settings.inputs,
        [gallery, seed, left_out, stage, drawn, pictures, tools, both],
        api_name="generate",
        **drawing,
    )
    compare.click(
        with_request(session, before_after), settings.inputs, [slider, stage, both], api_name="before_after", **drawing
    )
    settings.end.click(stop, api_name="stop", queue=False)
    restore.click(restore_drawn, [drawn, at], settings.inputs, api_visibility="private")
    dropped.upload(restore_from, dropped, settings.inputs, api_name="restore")
    gallery.select(_selected, None, at, api_visibility="private")
    settings.picker.insert(insert, settings.inputs[0], settings.inputs[0], api_visibility="private")
    return settings


def _settings(session: Session) -> Settings:
    first = session.default_request
    with gr.Group(elem_classes="panel"):
        prompt = gr.Textbox(first.prompt, label="Prompt", lines=3, max_lines=8, elem_id="prompt", autofocus=True)
        negative = gr.Textbox("", label="Keep away from", lines=1, max_lines=4, elem_id="negative")
    with gr.Row(elem_classes="actions"):
        go = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
        end = gr.Button("Stop", elem_id="stop", scale=1, min_width=90)
    gr.HTML('<h2 class="heading">Adapters</h2>')
    picker = adapter_picker(session, elem_id="adapters", label="adapters")
    combine = gr.Radio(_MIX, value="lie", label="Several at once act", elem_id="combine")
    with gr.Accordion("Picture", open=False, elem_id="picture-settings"):
        with gr.Row():
            steps = gr.Slider(1, 150, first.steps, step=1, label="Steps", elem_id="steps")
            guidance = gr.Slider(0, 30, first.guidance_scale, step=0.5, label="Guidance", elem_id="guidance")
        with gr.Row():
            step = session.model.base.multiple
            width = gr.Slider(8 * step, 2048, first.width, step=step, label="Width", elem_id="width")
            height = gr.Slider(8 * step, 2048, first.height, step=step, label="Height", elem_id="height")
        with gr.Row():
            names = session.model.base.schedulers
            scheduler = gr.Dropdown(list(names), value=names[0], label="Scheduler", elem_id="scheduler")
            count = gr.Slider(1, 16, 1, step=1, label="How many", elem_id="count")
        with gr.Row():
            seed = gr.Number(first.seed, label="Seed", precision=0, minimum=0, elem_id="seed")
            new_seed = gr.Checkbox(value=True, label="A new seed each time", elem_id="new-seed")
    with gr.Accordion("Start from a picture", open=False, elem_id="start-from"):
        image = gr.Image(
            label="Picture to start from", type="filepath", image_mode=None, sources=["upload"], height=220
        )
        strength = gr.Slider(0.05, 1, 0.6, step=0.05, label="How much of it may change", elem_id="image-strength")
    inputs = [prompt, negative, picker, combine, steps, guidance, width, height, scheduler, seed, new_seed, count]
    following = follow.build(session, picker, width, height)
    return Settings([*inputs, image, strength, *following], picker, combine, go, end)


def _kept(session: Session, digest: str | None) -> str | None:
    """Return a copy for the page of a picture that a request names."""
    try:
        return served(session, session.uploads.path(digest)) if digest else None
    except ImageError as error:
        gr.Warning(str(error))
        return None


def _selected(event: gr.SelectData) -> int:
    return event.index if isinstance(event.index, int) else 0


def _gallery(session: Session, saved: list[Saved]) -> list[tuple[str, str]]:
    return [(served(session, each.path), f"{each.request.prompt[:120]} · seed {each.request.seed}") for each in saved]


def _going_on(event: Reading | Waiting | Progress, request: DrawRequest) -> str:
    """The picture as it comes to be, and how long it takes."""
    if isinstance(event, Reading):
        return empty("Reading the model", "It is read once; this takes some seconds.")
    if isinstance(event, Waiting):
        return empty("Waiting", f"{event.before} before you: the model draws one request at a time.")
    which = f"Picture {event.picture + 1} of {event.pictures} · " if event.pictures > 1 else ""
    part = (event.picture * event.steps + event.step) / (event.pictures * event.steps)
    text = f"{which}step {event.step} of {event.steps} · {in_words(event.seconds_left)} left"
    return (
        f'<figure class="preview"><img src="{data_url(event.preview)}" alt="The picture so far" '
        f'style="max-width: {_LARGER * request.width}px">'
        f'<figcaption role="status">{text}</figcaption>'
        f'<progress max="1" value="{part:.3f}" aria-label="{text}"></progress></figure>'
    )


def _left_out(session: Session, request: DrawRequest) -> str:
    parts: list[str] = []
    for name, text in (("prompt", request.prompt), ("negative prompt", request.negative_prompt)):
        if unread := session.model.painter.left_out(text):
            start = html.escape(unread[:160]) + ("…" if len(unread) > 160 else "")
            parts.append(f'<p class="note warning">The model does not read the end of the {name}: <q>{start}</q></p>')
    return "".join(parts)
