"""The control panel: a control image, uploaded or sketched, its annotator, and a preview of the condition."""

from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.files import write_file
from hra_diffusion.studio.engine.conditions import ANNOTATORS, AS_TRAINED, NO_ANNOTATOR, sketch_condition
from hra_diffusion.studio.engine.exporting import new_folder
from hra_diffusion.studio.engine.requests import GenerateRequest, parse_adapter_uses
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.uploads import DECODING, read_upload
from hra_diffusion.studio.tabs.common import note, reports_errors, served_copy

_HELP = "Choose a control among the adapters above. Its strength is on its card."
_BRUSH = gr.Brush(default_size=6, colors=["#000000", "#c0392b", "#2c866a", "#2e62a8", "#e2b566"])
_CANVAS_SIZE = (512, 512)


def control_panel(session: Session, adapters: gr.HTML, width: gr.Slider, height: gr.Slider) -> dict[str, Any]:
    """Build the control panel; return its components by the name of the setting."""
    with gr.Accordion("Control (ControlNet)", open=False, elem_id="control"):
        gr.HTML(note(_HELP))
        image = gr.Image(
            label="Control image",
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard"],
            height=220,
            elem_id="control-image",
        )
        sketch, use_sketch = _sketch_pad()
        annotator = gr.Dropdown(
            [(label, name) for name, label in ANNOTATORS.items()],
            value=AS_TRAINED,
            label="Annotator (preprocessor)",
            info="Turns the control image into the condition",
            elem_id="annotator",
        )
        with gr.Row():
            start = gr.Slider(0, 1, 0, step=0.05, label="Control start", info="0 is noise", elem_id="control-start")
            end = gr.Slider(0, 1, 1, step=0.05, label="Control end", info="1 is the image", elem_id="control-end")
        _condition_preview(session, [adapters, image, annotator, width, height])
    _connect_sketch(session, sketch, use_sketch, adapters, image, annotator)
    _keep_annotator(image, annotator)
    return {"control_image": image, "annotator": annotator, "control_start": start, "control_end": end}


def _sketch_pad() -> tuple[gr.Sketchpad, gr.Button]:
    with gr.Accordion("Sketch", open=False, elem_id="sketch"):
        pad = gr.Sketchpad(
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
        return pad, gr.Button("Use this sketch", size="sm", elem_id="use-sketch")


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

    @reports_errors
    def preview_condition(
        adapters: list[Any] | None, control_image: str | None, annotator: str, width: float, height: float
    ) -> Any:
        """Annotate a control image for the control among the adapters. Returns the condition's file."""
        if not control_image:
            raise ConfigError("The control image is empty: upload an image or use a sketch.")
        request = GenerateRequest.from_json({"adapters": adapters or [], "width": width, "height": height})
        condition = session.with_condition(request, Path(control_image), annotator).condition or ""
        return gr.update(value=served_copy(session, session.uploads.path(condition)), visible=True)

    button.click(preview_condition, inputs, preview, api_name="annotate")


def _connect_sketch(
    session: Session,
    pad: gr.Sketchpad,
    button: gr.Button,
    adapters: gr.HTML,
    image: gr.Image,
    annotator: gr.Dropdown,
) -> None:
    @reports_errors
    def use_sketch(sketch: dict[str, Any] | None, adapters: list[Any] | None) -> tuple[str, str]:
        if not sketch or not sketch.get("composite"):
            raise ConfigError("The sketch is empty: draw something first.")
        entries = [session.library.entry(use.name) for use in parse_adapter_uses(adapters or [])]
        path = new_folder(session.cache) / "sketch.png"
        with DECODING:
            write_file(path, sketch_condition(read_upload(Path(sketch["composite"])), entries).save)
        return str(path), NO_ANNOTATOR

    button.click(use_sketch, [pad, adapters], [image, annotator], api_visibility="private")


def _keep_annotator(image: gr.Image, annotator: gr.Dropdown) -> None:
    """Restore the user's annotator at each upload, since sketches and loaded settings set it to "none"."""
    selected = gr.State(AS_TRAINED)
    annotator.input(lambda name: name, annotator, selected, api_visibility="private", queue=False)
    image.upload(lambda name: name, selected, annotator, api_visibility="private", queue=False)
