"""What is to be taught, as components: images with captions and crops, words, and how much effort."""

import html
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.training_job import PRESETS, TrainingImage, TrainingJob, called, examine, with_effort
from hra_diffusion.studio.tabs.common import data_url, empty, heading, in_words, named, note, shown

_COLUMNS = ["image", "caption", "crop"]
_NO_IMAGES = empty("Four to eight images", "One subject, different views, backgrounds and light.")
_CAPTIONS = (
    "Caption images that show more than the subject. Crops are whole, middle, start, end, or x, y, width, height."
)
_USUAL = "Usual"
_NUMBERS = {
    "steps": "Steps",
    "rank": "Rank",
    "class_images": "Class images",
    "looks": "Looks on the way",
    "preview_steps": "Steps of a look",
}
"""Labels of an effort's numbers. They are texts on the page: a number field that is empty there would send 0."""
NAMES = (
    "files",
    "captions",
    "name",
    "subject",
    "token",
    "prompt_prefix",
    "preset",
    *_NUMBERS,
)
"""Names of the inputs, for the API, in the order of their components."""


@dataclass(frozen=True)
class TrainingForm:
    """The components that say what to teach, in the order of `NAMES`."""

    inputs: list[Any]
    preset: gr.Radio
    teach: gr.Button


def training_form(session: Session) -> TrainingForm:
    """Put the form together; images are looked at, and a lesson is measured, in it."""
    look_like = "a 3d render of" if session.embedded else "a photo of"
    heading("Images")
    files = gr.File(
        label="Images of the subject",
        show_label=False,
        file_count="multiple",
        file_types=["image"],
        height=140,
        elem_id="photos",
    )
    checked = gr.HTML(_NO_IMAGES, label="checked", elem_id="checked")
    table = gr.Dataframe(
        headers=_COLUMNS,
        datatype="str",
        type="array",
        column_count=(3, "fixed"),
        interactive=True,
        wrap=True,
        visible=False,
        label="Captions and crops",
        elem_id="captions",
    )
    heading("Words")
    with gr.Group(elem_classes="panel"):
        with gr.Row():
            name = gr.Textbox(label="Name of it", elem_id="run-name", placeholder="my dog")
            subject = gr.Textbox(label="What it is", elem_id="subject", placeholder="dog")
        with gr.Row():
            token = gr.Textbox("sks", label="Rare word for it", elem_id="token")
            prompt_prefix = gr.Textbox(look_like, label="Kind of image", elem_id="looks-like")
        names = gr.HTML("", label="called", elem_id="called")
    heading("Preset")
    preset = gr.Radio(presets(session), value=_USUAL, label="Preset", show_label=False, elem_id="preset")
    with gr.Accordion("More", open=False, elem_id="effort"):
        with gr.Row():
            numbers = [
                gr.Textbox(
                    label=label,
                    placeholder=str(getattr(PRESETS[_USUAL], name)),
                    max_lines=1,
                    min_width=140,
                    elem_id=f"teach-{name}",
                )
                for name, label in _NUMBERS.items()
            ]
        gr.HTML(note("What is empty here is the preset's."))
    with gr.Row(elem_classes="actions"):
        teach = gr.Button("Teach", variant="primary", elem_id="teach", scale=2)
        measure = gr.Button("Measure cost", elem_id="measure", scale=2)
    cost = gr.HTML("", label="cost", elem_id="cost")
    inputs = [files, table, name, subject, token, prompt_prefix, preset, *numbers]

    @shown
    def examine_them(files: list[str] | None, captions: Any = None) -> Any:
        """Look at images: what is wrong with each, as HTML, and a table for captions and crops, with those so far."""
        found = examine([Path(file) for file in files or []])
        good = [path.name for path, size, _ in found if size]
        rows = [[name, *words] for name, words in zip(good, _words(captions, good), strict=True)]
        return _report(found), gr.update(value=rows, visible=bool(rows))

    def estimate(*values: Any) -> str:
        """Measure in two steps what teaching would cost in time and memory."""
        told = session.estimate(lesson_of(values))
        rows = "".join(f"<dt>{key}</dt><dd>{html.escape(told[key])}</dd>" for key in ("time", "memory") if key in told)
        return f'<dl class="cost">{rows}</dl>'

    words = [prompt_prefix, token, subject]
    gr.on([each.change for each in words], _called, words, names, api_visibility="private", queue=False)
    files.change(examine_them, [files, table], [checked, table], api_name="examine")
    preset.input(_placeholders, preset, numbers, api_visibility="private", queue=False, show_progress="hidden")
    measure.click(named(estimate, *NAMES), inputs, cost, api_name="estimate").success(
        lambda: gr.update(choices=presets(session)), None, preset, api_visibility="private", show_progress="hidden"
    )
    return TrainingForm(inputs, preset, teach)


def lesson_of(values: Sequence[Any]) -> TrainingJob:
    """Make the lesson that the form's values, and behind them the asker, say; raises ConfigError."""
    said = dict(zip(NAMES, values, strict=False))
    if said["preset"] not in PRESETS:
        raise ConfigError(f"There is no effort {str(said['preset'])[:80]!r}; known are: {', '.join(PRESETS)}.")
    effort = with_effort(PRESETS[said["preset"]], **{name: _number(name, said[name]) for name in _NUMBERS})
    good = [path for path, size, _ in examine([Path(file) for file in said["files"] or []]) if size]
    words = _words(said["captions"], [path.name for path in good])
    sittings = [
        TrainingImage(file=path, caption=caption, crop=crop) for path, (caption, crop) in zip(good, words, strict=True)
    ]
    return TrainingJob(
        name=str(said["name"] or "").strip(),
        sittings=tuple(sittings),
        token=str(said["token"] or ""),
        subject=str(said["subject"] or ""),
        prompt_prefix=str(said["prompt_prefix"] or ""),
        effort=effort,
    )


def _words(table: Any, names: list[str]) -> list[list[str]]:
    """Find caption and crop of each image in a table; rows of the same name are for the images of it, in order."""
    rows = table.get("data", []) if isinstance(table, dict) else table or []
    said: dict[str, list[list[str]]] = defaultdict(list)
    for row in rows:
        if len(row) >= len(_COLUMNS):
            said[str(row[0])].append([str(cell or "") for cell in row[1:3]])
    return [said[name].pop(0) if said[name] else ["", "whole"] for name in names]


def _number(name: str, said: Any) -> int | None:
    """Read a whole number, or None where there is none; raises ConfigError."""
    if said is None or not str(said).strip():
        return None
    try:
        return int(str(said).strip().removesuffix(".0"))
    except ValueError:
        raise ConfigError(f"{_NUMBERS[name]} must be a whole number; found {str(said)[:40]!r}.") from None


def _placeholders(preset: str) -> list[Any]:
    effort = PRESETS.get(preset, PRESETS[_USUAL])
    return [gr.update(placeholder=str(getattr(effort, name))) for name in _NUMBERS]


def _called(prompt_prefix: str, token: str, subject: str) -> str:
    """What it and its class will be called, in the prompts of the run."""
    if not subject.strip():
        return ""
    own, others = html.escape(called(prompt_prefix, token, subject)), html.escape(called(prompt_prefix, subject))
    return f'<p class="called">Prompts call it <q>{own}</q>, and others of its kind <q>{others}</q>.</p>'


def presets(session: Session) -> list[tuple[str, str]]:
    """The presets, and what each costs once it was measured for the base."""
    cost = session.costs.of(session.model.base.source)
    return [
        (
            f"{name} · {effort.steps} steps"
            + (f" · {in_words(cost.seconds(effort))}, {cost.memory:.1f} GB" if cost else ""),
            name,
        )
        for name, effort in PRESETS.items()
    ]


def _report(found: list[tuple[Path, tuple[int, int] | None, str]]) -> str:
    """Thumbnails of what can be used, and what is wrong with the rest, by name."""
    if not found:
        return _NO_IMAGES
    good = "".join(
        f'<figure><img src="{data_url(path, 160)}" alt="{html.escape(path.name)}">'
        f"<figcaption>{size[0]}×{size[1]}</figcaption></figure>"
        for path, size, _ in found
        if size
    )
    bad = "".join(note(problem, "warning") for _, size, problem in found if not size)
    return f'<div class="strip">{good}</div>{bad}{note(_CAPTIONS) if good else ""}'
