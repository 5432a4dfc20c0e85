"""What to draw, as components: the settings of Generate, with which other tabs draw, too."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from hra_diffusion.errors import ImageError
from hra_diffusion.studio.engine.conditions import GIVEN, OWN
from hra_diffusion.studio.engine.requests import GenerateRequest
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs import control
from hra_diffusion.studio.tabs.common import as_sent, heading, served
from hra_diffusion.studio.tabs.picker import adapter_picker

_MIX = [("Together (their mean on the rotation group)", "lie"), ("One after the other (product)", "product")]


@dataclass(frozen=True)
class Settings:
    """The components that say what to draw, in the order of `SETTINGS`."""

    inputs: list[Any]
    picker: gr.HTML
    combine: gr.Radio
    go: gr.Button
    end: gr.Button

    def values(self, session: Session, request: GenerateRequest) -> list[Any]:
        """What they show for a request; images that are not among the uploads any more are left out."""
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


def settings_panel(session: Session) -> Settings:
    """Put the settings together, with the buttons that draw and stop."""
    first = session.default_request
    with gr.Group(elem_classes="panel"):
        prompt = gr.Textbox(first.prompt, label="Prompt", lines=3, max_lines=8, elem_id="prompt", autofocus=True)
        negative = gr.Textbox(
            "",
            label="Negative prompt",
            placeholder="what is not to be there",
            lines=1,
            max_lines=4,
            elem_id="negative",
        )
    with gr.Row(elem_classes="actions"):
        go = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
        end = gr.Button("Stop", elem_id="stop", scale=1, min_width=90)
    heading("Adapters")
    picker = adapter_picker(session, elem_id="adapters", label="adapters")
    combine = gr.Radio(_MIX, value="lie", label="How several act at once", elem_id="combine")
    with gr.Accordion("Size, steps, seed", open=False, elem_id="image-settings"):
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
    with gr.Accordion("Start from an image", open=False, elem_id="start-from"):
        image = gr.Image(label="Image to start from", type="filepath", image_mode=None, sources=["upload"], height=220)
        strength = gr.Slider(0.05, 1, 0.6, step=0.05, label="How much of it may change", elem_id="image-strength")
    inputs = [prompt, negative, picker, combine, steps, guidance, width, height, scheduler, seed, new_seed, count]
    inputs += [image, strength, *control.build(session, picker, width, height)]
    as_sent(*inputs)
    return Settings(inputs, picker, combine, go, end)


def _kept(session: Session, digest: str | None) -> str | None:
    """Return a copy for the page of an image that a request names."""
    try:
        return served(session, session.uploads.path(digest)) if digest else None
    except ImageError as error:
        gr.Warning(str(error))
        return None
