"""The numbers of a training job: presets with their time and memory, and fields that override them."""

from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.session import Session, job_defaults
from hra_diffusion.studio.engine.training.run_options import MAX_PROMPTS, option_text
from hra_diffusion.studio.engine.training.training_job import PRESETS, VALIDATION_PROMPTS, TrainingJob
from hra_diffusion.studio.tabs.common import format_duration, note
from hra_diffusion.studio.tabs.events import listen
from hra_diffusion.studio.tabs.labels import LABELS
from hra_diffusion.studio.tabs.training_fields import ADVANCED, JOBS, KINDS, NUMBERS
from hra_diffusion.training.config.file import flat_values

DEFAULT_PRESET = "Usual"


def number_fields(session: Session, kind: gr.Radio, base: gr.Dropdown, preset: gr.Radio) -> dict[str, gr.Textbox]:
    """Build the fields that override the preset's numbers and the base's settings; return them by name."""
    values = _placeholders(session, "subject", None, DEFAULT_PRESET)
    with gr.Accordion("Advanced", open=False, elem_id="advanced"):
        prompts = gr.Textbox(
            label=LABELS["validation_prompts"],
            info="validation_prompts, one per line; {instance_prompt} and {class_prompt} stand for the prompts above",
            placeholder="\n".join(VALIDATION_PROMPTS),
            lines=3,
            max_lines=MAX_PROMPTS,
            elem_id="train-validation_prompts",
        )
        with gr.Row():
            numbers = {
                name: gr.Textbox(
                    label=LABELS[name],
                    info=info,
                    placeholder=values[name],
                    max_lines=1,
                    min_width=220,
                    elem_id=f"train-{name}",
                )
                for name, info in (NUMBERS | ADVANCED).items()
            }
        gr.HTML(note("Names are the command line's. Empty fields take the preset's numbers."))

    def update_placeholders(kind: str | None, base: str | None, preset: str) -> list[Any]:
        values = _placeholders(session, kind, base, preset)
        return [gr.update(placeholder=values[name]) for name in numbers]

    inputs = [kind, base, preset]
    listen([preset.input, kind.change, base.change], update_placeholders, inputs, [*numbers.values()], queue=False)

    def update_presets(kind: str | None, base: str | None) -> Any:
        return gr.update(choices=preset_choices(session, kind, base))

    listen([kind.change, base.change], update_presets, [kind, base], preset, queue=False)
    return {"validation_prompts": prompts, **numbers}


def preset_choices(session: Session, kind: str | None = None, base: str | None = None) -> list[tuple[str, str]]:
    """Return label and name of each preset; after an estimate for the base, labels include time and memory."""
    presets = KINDS.get(kind or "subject", PRESETS)
    source = session.worker.bases.get(base or None).source
    estimate = session.estimates.get(source) if presets is PRESETS else None
    choices: list[tuple[str, str]] = []
    for name, preset in presets.items():
        label = f"{name} · {preset.steps} steps"
        if estimate:
            label += f" · {format_duration(estimate.seconds(preset))}, {estimate.memory:.1f} GB"
        choices.append((label, name))
    return choices


def _placeholders(session: Session, kind: str | None, base: str | None, preset: str) -> dict[str, str]:
    """Return the placeholders of empty fields by name: the numbers of the preset, and of the base's settings."""
    presets = KINDS.get(kind or "subject", PRESETS)
    numbers = presets.get(preset, presets[DEFAULT_PRESET])
    known = session.worker.bases.get(base or None)
    defaults = flat_values(job_defaults(known, JOBS.get(kind or "subject", TrainingJob)))
    return {
        **{name: str(getattr(numbers, name)) for name in NUMBERS},
        **{name: option_text(name, defaults[name]) or "the model's" for name in ADVANCED},
        "checkpointing_steps": "a quarter of the steps",
    }
