"""The section that captions all training images: by a template, or by the studio's captioner."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.training.captions import TEMPLATE, template_captions
from hra_diffusion.studio.engine.training.training_images import check_images
from hra_diffusion.studio.tabs.events import listen_busy
from hra_diffusion.studio.tabs.labels import LABELS
from hra_diffusion.studio.tabs.training_fields import captions_and_crops


def caption_section(
    session: Session,
    files: gr.File,
    captions: gr.Dataframe,
    token: gr.Textbox,
    subject: gr.Textbox,
    show_captions: Callable[[Any], Any],
) -> None:
    """Build the section.

    Args:
        session: the studio's session.
        files: the training images.
        captions: the table of captions and crops.
        token: the trigger word.
        subject: the class.
        show_captions: lets the cards of the images display the table after an event.
    """
    with gr.Accordion("Captions for all images", open=False, elem_id="caption-all"):
        template = gr.Textbox(
            TEMPLATE,
            label=LABELS["caption_template"],
            info="{trigger}, {class} and {filename} stand for the words above and the image's name",
            max_lines=1,
            elem_id="caption-template",
        )
        with gr.Row():
            fill = gr.Button("Fill in captions", elem_id="fill-captions")
            describe = gr.Button(
                "Caption with the model", visible=session.config.captioner is not None, elem_id="caption-images"
            )

    def fill_captions(files: list[str] | None, table: Any, template: str, token: str, subject: str) -> list[list[str]]:
        paths = usable_images(files)
        return _with_captions(paths, table, template_captions(template, token, subject, [path.name for path in paths]))

    def caption_images(files: list[str] | None, table: Any) -> list[list[str]]:
        paths = usable_images(files)
        return _with_captions(paths, table, session.image_captions.captions(paths))

    show_captions(
        listen_busy(fill, "Filling in…", fill_captions, [files, captions, template, token, subject], captions).success
    )
    show_captions(listen_busy(describe, "Captioning…", caption_images, [files, captions], captions).success)


def usable_images(files: list[str] | None) -> list[Path]:
    """Return the files that are images."""
    return [path for path, size, _ in check_images([Path(file) for file in files or []]) if size]


def _with_captions(paths: list[Path], table: Any, captions: list[str]) -> list[list[str]]:
    """Return the rows of the table with other captions."""
    names = [path.name for path in paths]
    crops = [crop for _, crop in captions_and_crops(table, names)]
    return [list(row) for row in zip(names, captions, crops, strict=True)]
