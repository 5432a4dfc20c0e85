"""The form of a training job: images with captions and crops, prompts, and a preset."""

import html
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.adapters.subject_prompts import subject_prompt
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.training.control_job import GIVEN, TRAINING_ANNOTATORS
from hra_diffusion.studio.tabs.base_field import base_field
from hra_diffusion.studio.tabs.caption_section import caption_section
from hra_diffusion.studio.tabs.common import heading, note
from hra_diffusion.studio.tabs.events import listen, listen_busy
from hra_diffusion.studio.tabs.image_cards import image_cards
from hra_diffusion.studio.tabs.labels import LABELS
from hra_diffusion.studio.tabs.training_fields import (
    CAPTION_COLUMNS,
    TrainingFields,
    job_from_values,
)
from hra_diffusion.studio.tabs.training_numbers import DEFAULT_PRESET, number_fields, preset_choices

_CAPTION_HELP = (
    "Caption images that contain more than the subject. A crop is whole, middle, start, end, or x, y, width, height."
)
_GIVEN_HELP = "uploaded conditions of another kind"
_PREFIXES = ("a photo of", "a 3d render of")
"""The first prompt prefix, in general and for the embedded base."""


@dataclass(frozen=True)
class TrainingForm:
    """The fields and the button that starts a job."""

    fields: TrainingFields
    train: gr.Button
    show_captions: Callable[[Any], Any]
    """Lets the cards of the images display the table of captions after an event."""


def training_form(session: Session) -> TrainingForm:
    """Build the form."""
    kind, annotator, conditions = _kind_fields()
    base = base_field(
        session,
        info="Empty fields take its settings",
        allow_custom_value=True,  # a browser may remember one that is not here
        elem_id="train-base",
    )
    files, captions, show_captions = _image_fields()
    prompts = _prompt_fields(session)
    listen(base.change, _base_prefix(session), [base, prompts["prompt_prefix"]], prompts["prompt_prefix"], queue=False)
    caption_section(session, files, captions, prompts["token"], prompts["subject"], show_captions)
    heading("Preset")
    preset = gr.Radio(preset_choices(session), value=DEFAULT_PRESET, label="Preset", show_label=False, elem_id="preset")
    numbers = number_fields(session, kind, base, preset)
    with gr.Row(elem_classes="actions"):
        train = gr.Button("Train", variant="primary", elem_id="train", scale=2)
        estimate = gr.Button("Estimate", elem_id="estimate", scale=2)
    form_fields = TrainingFields(
        files=files,
        captions=captions,
        **prompts,
        preset=preset,
        **numbers,
        kind=kind,
        annotator=annotator,
        base=base,
        conditions=conditions,
    )
    _connect_estimate(session, estimate, form_fields)
    return TrainingForm(form_fields, train, show_captions)


def _kind_fields() -> tuple[gr.Radio, gr.Dropdown, gr.File]:
    """Build the choice between a subject and a control, and the annotator and conditions of a control."""
    with gr.Accordion("Subject or control", open=False, elem_id="training-kind"):
        kind = gr.Radio(
            [("Subject (DreamBooth)", "subject"), ("Control (ControlNet)", "control")],
            value="subject",
            label=LABELS["kind"],
            info="A control learns a kind of condition from many captioned images; prefix and class are the captions "
            "of the others",
            elem_id="kind",
        )
        annotator = gr.Dropdown(
            [(f"{name}: {text}", name) for name, text in (TRAINING_ANNOTATORS | {GIVEN: _GIVEN_HELP}).items()],
            value="canny",
            label=LABELS["annotator"],
            info="It makes the condition of each image, or made the uploaded ones",
            visible=False,
            elem_id="train-annotator",
        )
        conditions = gr.File(
            label=LABELS["conditions"],
            file_count="multiple",
            file_types=["image"],
            height=140,
            visible=False,
            elem_id="train-conditions",
        )

    def show_fields(kind: str | None) -> list[Any]:
        if kind == "control":
            return [gr.update(visible=True)] * 2
        return [gr.update(visible=False), gr.update(visible=False, value=None)]

    listen(kind.change, show_fields, kind, [annotator, conditions], queue=False)
    return kind, annotator, conditions


def _image_fields() -> tuple[gr.File, gr.Dataframe, Callable[[Any], Any]]:
    heading("Images")
    files = gr.File(
        label=LABELS["images"],
        show_label=False,
        file_count="multiple",
        file_types=["image"],
        height=140,
        elem_id="training-images",
    )
    captions = gr.Dataframe(
        headers=CAPTION_COLUMNS,
        datatype="str",
        type="array",
        column_count=(3, "fixed"),  # pyright: ignore[reportArgumentType]  # gradio's annotation lacks the tuple
        interactive=True,
        wrap=True,
        visible=False,
        label="Captions and crops",
        elem_id="captions",
        render=False,
    )
    show_captions = image_cards(files, captions)
    with gr.Accordion("Table of captions and crops", open=False, elem_id="caption-table"):
        gr.HTML(note(_CAPTION_HELP))
        captions.render()
    return files, captions, show_captions


def _prompt_fields(session: Session) -> dict[str, gr.Textbox]:
    """Build the fields that make up the prompts; return them by name."""
    heading("Name and prompts")
    with gr.Group(elem_classes="panel"):
        with gr.Row():
            name = gr.Textbox(label=LABELS["name"], info="The adapter's name", elem_id="job-name", placeholder="my dog")
            subject = gr.Textbox(
                label=LABELS["subject"], info="What the subject is", elem_id="subject", placeholder="dog"
            )
        with gr.Row():
            token = gr.Textbox("sks", label=LABELS["token"], info="A rare word for the subject", elem_id="token")
            prompt_prefix = gr.Textbox(
                _PREFIXES[session.worker.base.is_embedded],
                label=LABELS["prompt_prefix"],
                info="The kind of image",
                elem_id="prompt-prefix",
            )
        prompts = gr.HTML("", label="prompts", elem_id="prompts")
    parts = [prompt_prefix, token, subject]
    listen([part.change for part in parts], _prompts_html, parts, prompts, queue=False)
    return {"name": name, "subject": subject, "token": token, "prompt_prefix": prompt_prefix}


def _base_prefix(session: Session) -> Callable[[str | None, str], Any]:
    """Return a handler that gives the chosen base's prompt prefix, unless another one was typed."""

    def prefix_of_base(base: str | None, prefix: str) -> Any:
        return _PREFIXES[session.worker.bases.get(base or None).is_embedded] if prefix in _PREFIXES else gr.skip()

    return prefix_of_base


def _connect_estimate(session: Session, button: gr.Button, form_fields: TrainingFields) -> None:
    costs = gr.HTML("", label="estimate", elem_id="costs")

    def estimate(*values: Any) -> str:
        report = session.estimate(job_from_values(values))
        rows = [f"<dt>{key}</dt><dd>{html.escape(report[key])}</dd>" for key in ("time", "memory") if key in report]
        return f'<dl class="costs">{"".join(rows)}</dl>'

    done = listen_busy(button, "Estimating, about 30 s…", estimate, form_fields.components, costs)
    listen(
        done.success,
        lambda kind, base: gr.update(choices=preset_choices(session, kind, base)),
        [form_fields.kind, form_fields.base],
        form_fields.preset,
    )


def _prompts_html(prompt_prefix: str | None, token: str | None, subject: str | None) -> str:
    """Return the HTML of the instance prompt and the class prompt; "" without a class."""
    if not (subject or "").strip():
        return ""
    prompt_prefix, token, subject = prompt_prefix or "", token or "", subject or ""
    instance = html.escape(subject_prompt(prompt_prefix, token, subject))
    class_ = html.escape(subject_prompt(prompt_prefix, subject))
    return f'<p class="prompts">Instance prompt: <q>{instance}</q><br>Class prompt: <q>{class_}</q></p>'
