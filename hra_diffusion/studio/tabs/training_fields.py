"""The fields of a training job as components, and the job made from their values."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.setting_error import SettingError
from hra_diffusion.studio.engine.training.control_job import CONTROL_PRESETS, ControlJob
from hra_diffusion.studio.engine.training.job_settings import form_values
from hra_diffusion.studio.engine.training.run_options import RUN_OPTIONS, parse_run_options, parse_whole
from hra_diffusion.studio.engine.training.training_images import TrainingImage, check_images, with_conditions
from hra_diffusion.studio.engine.training.training_job import PRESETS, TrainingJob, adjust_preset
from hra_diffusion.studio.tabs.common import served_copy

CAPTION_COLUMNS = ["image", "caption", "crop"]
NUMBERS = {
    "steps": "max_train_steps",
    "rank": "rank: reflections per layer, an even number",
    "class_images": "num_class_images: they preserve the class; 0 for none",
    "validations": "validation_steps: validations in the job; 0 for none",
    "inference_steps": "num_inference_steps of validation images",
}
"""Help of a preset's numbers, with the command line's names. They are text boxes: an empty number field sends 0."""
ADVANCED = {
    "learning_rate": "learning_rate: rotation of a layer in one step, in radians",
    "resolution": "resolution: side of the training images in pixels",
    "train_batch_size": "train_batch_size: images of the subject in a batch",
    "seed": "seed of everything in the job",
    "target_modules": "target_modules: ends of layer names, such as to_q to_k to_v to_out.0",
    "checkpointing_steps": "checkpointing_steps: steps between checkpoints",
}
"""Help of the other numbers, likewise; empty ones are those of the base model's settings."""

KINDS = {"subject": PRESETS, "control": CONTROL_PRESETS}
"""Kinds of training jobs with their presets."""
JOBS = {"subject": TrainingJob, "control": ControlJob}
"""The class of each kind."""


@dataclass(frozen=True)
class TrainingFields:
    """The fields of the form, by parameter name of the API and in the API's order."""

    files: gr.File
    captions: gr.Dataframe
    name: gr.Textbox
    subject: gr.Textbox
    token: gr.Textbox
    prompt_prefix: gr.Textbox
    preset: gr.Radio
    steps: gr.Textbox
    rank: gr.Textbox
    class_images: gr.Textbox
    validations: gr.Textbox
    inference_steps: gr.Textbox
    validation_prompts: gr.Textbox
    learning_rate: gr.Textbox
    resolution: gr.Textbox
    train_batch_size: gr.Textbox
    seed: gr.Textbox
    target_modules: gr.Textbox
    checkpointing_steps: gr.Textbox
    kind: gr.Radio
    annotator: gr.Dropdown
    base: gr.Dropdown
    conditions: gr.File

    @property
    def components(self) -> list[gr.components.Component]:
        """All fields, in the order of `FIELDS`."""
        return [getattr(self, name) for name in FIELDS]


FIELDS = tuple(field.name for field in fields(TrainingFields))
"""Names of the fields, for the API."""


def job_from_values(values: Sequence[Any]) -> TrainingJob:
    """Make a training job from the form's values, in the order of `FIELDS`; raises ConfigError."""
    by_name = dict(zip(FIELDS, values, strict=False))
    kind = by_name.get("kind") or "subject"
    if kind not in KINDS:
        raise ConfigError(f"There is no kind {str(kind)[:80]!r} of a training job; known are: {', '.join(KINDS)}.")
    if by_name["preset"] not in PRESETS:
        raise ConfigError(f"There is no preset {str(by_name['preset'])[:80]!r}; known are: {', '.join(PRESETS)}.")
    numbers = {name: parse_whole(name, by_name[name]) for name in NUMBERS}
    paths = [path for path, size, _ in check_images([Path(file) for file in by_name["files"] or []]) if size]
    rows = captions_and_crops(by_name["captions"], [path.name for path in paths])
    images = [
        TrainingImage(file=path, caption=caption, crop=crop) for path, (caption, crop) in zip(paths, rows, strict=True)
    ]
    if conditions := [Path(file) for file in by_name.get("conditions") or []]:
        if kind != "control":
            raise SettingError("conditions", "are for controls: remove them, or choose the kind control.")
        images = with_conditions(images, conditions)
    shared: dict[str, Any] = {
        "name": str(by_name["name"] or "").strip(),
        "images": tuple(images),
        "subject": str(by_name["subject"] or ""),
        "prompt_prefix": str(by_name["prompt_prefix"] or ""),
        "base": by_name.get("base") or None,
        "preset": adjust_preset(KINDS[kind][by_name["preset"]], **numbers),
        "options": parse_run_options(by_name),
    }
    if kind == "control":
        return ControlJob(**shared, annotator=str(by_name.get("annotator") or "canny"))
    return TrainingJob(**shared, token=str(by_name["token"] or ""))


def cloned_fields(session: Session, job: str) -> list[Any]:
    """Return the fields of a new job with another one's settings and a free name; errors as in `form_values`."""
    values = form_values(session.jobs.get(job).folder)
    images = values["images"]
    by_name = {name: str(values[name]) for name in (*NUMBERS, *RUN_OPTIONS)} | {
        "files": [served_copy(session, image.file) for image in images],
        "captions": gr.update(value=[[image.file.name, image.caption, image.crop] for image in images], visible=True),
        "conditions": [served_copy(session, image.condition) for image in images if image.condition] or None,
        "name": session.free_job_name(job),
        "base": values["base"] if values["base"] in session.worker.bases.names else gr.skip(),
        "preset": gr.skip(),
        **{name: values.get(name, gr.skip()) for name in ("subject", "token", "prompt_prefix", "kind", "annotator")},
    }
    return [by_name[name] for name in FIELDS]


def captions_and_crops(table: Any, names: list[str]) -> list[list[str]]:
    """Return caption and crop of each image; rows with the same image name belong to its images in order."""
    rows = table.get("data", []) if isinstance(table, dict) else table or []
    by_name: dict[str, list[list[str]]] = defaultdict(list)
    for row in rows:
        if len(row) >= len(CAPTION_COLUMNS):
            by_name[str(row[0])].append([str(cell or "") for cell in row[1:3]])
    return [by_name[name].pop(0) if by_name[name] else ["", "whole"] for name in names]
