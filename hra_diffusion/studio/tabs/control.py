"""Follow an image: what the control among the chosen adapters is given, drawn here or uploaded, and a look at it."""

from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.files import write_file
from hra_diffusion.studio.engine.conditions import ANNOTATORS, GIVEN, OWN, of_drawing
from hra_diffusion.studio.engine.exporting import new_folder
from hra_diffusion.studio.engine.requests import GenerateRequest, adapter_uses
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.uploads import read_upload
from hra_diffusion.studio.tabs.common import note, served, shown

_HOW = "For controls: choose one among the adapters above; its strength is on its card."
_BRUSH = gr.Brush(default_size=6, colors=["#000000", "#c0392b", "#2c866a", "#2e62a8", "#e2b566"])
_CANVAS = (512, 512)


def build(session: Session, picker: gr.HTML, width: gr.Slider, height: gr.Slider) -> list[Any]:
    """Put the panel together; returns its settings: the image, the annotator, and where the control acts."""
    with gr.Accordion("Follow an image", open=False, elem_id="follow"):
        gr.HTML(note(_HOW))
        image = gr.Image(
            label="Image to follow",
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard"],
            height=220,
            elem_id="control-image",
        )
        with gr.Accordion("Draw it", open=False, elem_id="draw-it"):
            pad = gr.Sketchpad(
                label="Drawing",
                show_label=False,
                type="filepath",
                format="png",
                canvas_size=_CANVAS,
                brush=_BRUSH,
                layers=False,
                sources=(),
                transforms=(),
                elem_id="pad",
            )
            use = gr.Button("Follow this drawing", size="sm", elem_id="use-drawing")
        annotator = gr.Dropdown(
            [(words, name) for name, words in ANNOTATORS.items()],
            value=OWN,
            label="What is taken of it",
            elem_id="annotator",
        )
        with gr.Row():
            start = gr.Slider(0, 1, 0, step=0.05, label="From", info="0 is noise", elem_id="control-start")
            end = gr.Slider(0, 1, 1, step=0.05, label="To", info="1 is the image", elem_id="control-end")
        look = gr.Button("Show what is followed", size="sm", elem_id="annotate")
        seen = gr.Image(
            label="What is followed",
            format="png",
            visible=False,
            interactive=False,
            height=220,
            buttons=["download", "fullscreen"],
            elem_id="condition",
        )

    @shown
    def annotate(
        adapters: list[Any] | None, control_image: str | None, annotator: str, width: float, height: float
    ) -> Any:
        """What the control among the adapters is given of an image; returns it as a file."""
        if not control_image:
            raise ConfigError("Draw or upload an image first.")
        request = GenerateRequest.of({"adapters": adapters or [], "width": width, "height": height})
        condition = session.following(request, Path(control_image), annotator).condition or ""
        return gr.update(value=served(session, session.uploads.path(condition)), visible=True)

    @shown
    def use_drawing(drawing: dict[str, Any] | None, adapters: list[Any] | None) -> tuple[str, str]:
        if not drawing or not drawing.get("composite"):
            raise ConfigError("Draw something first.")
        entries = [session.library.entry(use.name) for use in adapter_uses(adapters or [])]
        path = new_folder(session.cache) / "drawing.png"
        write_file(path, of_drawing(read_upload(Path(drawing["composite"])), entries).save)
        return str(path), GIVEN

    look.click(annotate, [picker, image, annotator, width, height], seen, api_name="annotate")
    use.click(use_drawing, [pad, picker], [image, annotator], api_visibility="private")
    chosen = gr.State(OWN)
    annotator.input(lambda name: name, annotator, chosen, api_visibility="private", queue=False)
    image.upload(lambda name: name, chosen, annotator, api_visibility="private", queue=False)
    return [image, annotator, start, end]
