"""The panels of image to image: the start image, the mask painted on it, and outpainting."""

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from hra_diffusion.formats.files import write_file
from hra_diffusion.formats.masks import mask_of
from hra_diffusion.studio.engine.cache import new_folder
from hra_diffusion.studio.engine.images.inpainting import MAX_OUTPAINT, SIDES
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.uploads import DECODING, read_upload
from hra_diffusion.studio.tabs.common import note
from hra_diffusion.studio.tabs.events import listen
from hra_diffusion.studio.tabs.labels import LABELS

_HELP = "Paint the part to repaint over the start image: a mask is used at once. All else stays as it is."
_BRUSH = gr.Brush(default_size=40, colors=["#ffffff"], color_mode="fixed")
_HEIGHT = 420


def image_to_image_panel(session: Session) -> dict[str, Any]:
    """Build the accordion of image to image; return its components by the name of the setting."""
    with gr.Accordion("Image to image", open=False, elem_id="image-to-image"):
        image = gr.Image(label=LABELS["image"], type="filepath", image_mode=None, sources=["upload"], height=220)
        strength = gr.Slider(
            0.05,
            1,
            0.6,
            step=0.05,
            label=LABELS["image_strength"],
            info="Low values keep the start image; 1 replaces it",
            elem_id="image-strength",
        )
        mask_image, mask_blur = _inpainting(session, image)
        outpaint, outpaint_sides = _outpainting(session)
    return {
        "image": image,
        "image_strength": strength,
        "mask_image": mask_image,
        "mask_blur": mask_blur,
        "outpaint": outpaint,
        "outpaint_sides": outpaint_sides,
    }


def _inpainting(session: Session, image: gr.Image) -> tuple[gr.Image, gr.Slider]:
    with gr.Accordion("Inpainting (mask)", open=False, elem_id="inpainting"):
        gr.HTML(note(_HELP))
        editor = gr.ImageEditor(
            label="Paint the mask",
            type="filepath",
            format="png",
            image_mode="RGBA",
            sources=(),
            transforms=(),
            layers=False,
            brush=_BRUSH,
            height=_HEIGHT,
            elem_id="mask-editor",
        )
        mask_image = gr.Image(
            label=LABELS["mask_image"],
            type="filepath",
            image_mode=None,
            sources=["upload"],
            height=160,
            elem_id="mask-image",
        )
        mask_blur = gr.Slider(
            0, 64, 4, step=1, label=LABELS["mask_blur"], info="Soft edge, in pixels", elem_id="mask-blur"
        )
    _connect_mask(session, image, editor, mask_image)
    return mask_image, mask_blur


def _outpainting(session: Session) -> tuple[gr.Slider, gr.CheckboxGroup]:
    with gr.Accordion("Outpainting", open=False, elem_id="outpainting"):
        pixels = gr.Slider(
            0,
            MAX_OUTPAINT,
            0,
            step=session.worker.base.multiple,
            label=LABELS["outpaint"],
            info="Added to the size; it needs a high denoising strength, such as 0.9",
            elem_id="outpaint",
        )
        sides = gr.CheckboxGroup(
            list(SIDES), value=list(SIDES), label=LABELS["outpaint_sides"], elem_id="outpaint-sides"
        )
    return pixels, sides


def _connect_mask(session: Session, image: gr.Image, editor: gr.ImageEditor, mask_image: gr.Image) -> None:
    """Display the start image below the strokes, and use these as the mask after each stroke."""

    def use_strokes(painting: dict[str, Any] | None) -> Any:
        layers = (painting or {}).get("layers") or []
        if not layers:
            return gr.skip()
        path = new_folder(session.cache) / "mask.png"
        with DECODING:
            masks = [mask_of(read_upload(Path(layer), alpha=True)) for layer in layers]
            if not any(mask.getbbox() for mask in masks):
                return gr.skip()  # a new image, or one with the mask of loaded settings
            mask = Image.new("L", masks[0].size)
            for layer in masks:
                mask.paste(layer, mask=layer)
            write_file(path, mask.save)
        return str(path)

    listen(image.change, lambda path: path, image, editor, queue=False)
    listen([image.upload, image.clear], lambda: None, None, mask_image, queue=False)
    # gradio reports no change for the first stroke, but an input; that of a later one may be without its last stroke
    strokes = [editor.input, editor.change]
    listen(strokes, use_strokes, editor, mask_image, trigger_mode="always_last")
