"""The control panel: a control image, uploaded or sketched, its annotator, and a preview of the condition."""

from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.formats.files import write_file
from hra_diffusion.studio.engine.cache import new_folder
from hra_diffusion.studio.engine.generation.conditions import (
    ANNOTATORS,
    AS_TRAINED,
    NO_ANNOTATOR,
    has_strokes,
    sketch_condition,
)
from hra_diffusion.studio.engine.generation.requests import parse_adapter_uses
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.uploads import DECODING, read_upload
from hra_diffusion.studio.tabs.common import note, served_copy
from hra_diffusion.studio.tabs.events import listen, listen_busy
from hra_diffusion.studio.tabs.labels import LABELS

_HELP = "Choose a control among the adapters above. Its strength is on its card. A sketch is used at once."
_BRUSH = gr.Brush(default_size=6, colors=["#000000", "#c0392b", "#2c866a", "#2e62a8", "#e2b566"])
_CANVAS_SIZE = (512, 512)


def control_panel(session: Session, adapters: gr.HTML, width: gr.Slider, height: gr.Slider) -> dict[str, Any]:
    """Build the control panel; return its components by the name of the setting."""
    with gr.Accordion("Control (ControlNet)", open=False, elem_id="control"):
        gr.HTML(note(_HELP))
        image = gr.Image(
            label=LABELS["control_image"],
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard"],
            height=220,
            elem_id="control-image",
        )
        sketch = _sketch_pad()
        annotator = gr.Dropdown(
            [(label, name) for name, label in ANNOTATORS.items()],
            value=AS_TRAINED,
            label=LABELS["annotator"],
            info="Turns the control image into the condition",
            elem_id="annotator",
        )
        with gr.Row():
            start = gr.Slider(
                0, 1, 0, step=0.05, label=LABELS["control_start"], info="0 is noise", elem_id="control-start"
            )
            end = gr.Slider(
                0, 1, 1, step=0.05, label=LABELS["control_end"], info="1 is the image", elem_id="control-end"
            )
        _condition_preview(session, [adapters, image, annotator, width, height])
    _connect_sketch(session, sketch, adapters, image, annotator)
    _keep_annotator(image, annotator)
    return {"control_image": image, "annotator": annotator, "control_start": start, "control_end": end}


def _sketch_pad() -> gr.Sketchpad:
    with gr.Accordion("Sketch", open=False, elem_id="sketch"):
        return gr.Sketchpad(
            label="Sketch",
            show_label=False,
            type="filepath",
            format="png",
            canvas_size=_CANVAS_SIZE,
            brush=_BRUSH,
            layers=False,
            sources=(),
            transforms=(),
            elem_id="sketchpad",
        )


def _condition_preview(session: Session, inputs: list[gr.components.Component]) -> None:
    button = gr.Button("Preview the condition", size="sm", elem_id="annotate")
    preview = gr.Image(
        label="Condition",
        format="png",
        visible=False,
        interactive=False,
        height=220,
        buttons=["download", "fullscreen"],
        elem_id="condition",
    )

    def preview_condition(
        adapters: list[Any] | None, control_image: str | None, annotator: str, width: float, height: float
    ) -> Any:
        path = session.annotate(adapters, control_image, annotator, width, height)
        return gr.update(value=served_copy(session, path), visible=True)

    listen_busy(button, "Annotating…", preview_condition, inputs, preview)


def _connect_sketch(
    session: Session, pad: gr.Sketchpad, adapters: gr.HTML, image: gr.Image, annotator: gr.Dropdown
) -> None:
    """Use the sketch as the control image after each stroke, without an annotator."""

    def use_sketch(sketch: dict[str, Any] | None, adapters: list[Any] | None) -> tuple[Any, Any]:
        if not sketch or not sketch.get("composite"):
            return gr.skip(), gr.skip()
        entries = [session.library.entry(use.name) for use in parse_adapter_uses(adapters or [])]
        path = new_folder(session.cache) / "sketch.png"
        with DECODING:
            strokes = read_upload(Path(sketch["composite"]))
            if not has_strokes(strokes):
                return gr.skip(), gr.skip()
            write_file(path, sketch_condition(strokes, entries).save)
        return str(path), NO_ANNOTATOR

    listen(pad.change, use_sketch, [pad, adapters], [image, annotator], trigger_mode="always_last")


def _keep_annotator(image: gr.Image, annotator: gr.Dropdown) -> None:
    """Restore the user's annotator at each upload, since sketches and loaded settings set it to "none"."""
    selected = gr.State(AS_TRAINED)
    listen(annotator.input, lambda name: name, annotator, selected, queue=False)
    listen(image.upload, lambda name: name, selected, annotator, queue=False)
