"""The settings panel of Generate: prompt, adapters, sampling, image to image and control."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.requests import GenerateRequest
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import heading, skip_preprocessing
from hra_diffusion.studio.tabs.control import control_panel
from hra_diffusion.studio.tabs.events import listen
from hra_diffusion.studio.tabs.labels import LABELS
from hra_diffusion.studio.tabs.picker import adapter_picker
from hra_diffusion.studio.tabs.prompt_fields import count_tokens, prompt_fields
from hra_diffusion.studio.tabs.settings import Settings

_PROMPT_SYNTAX = [("Weights as in A1111", "a1111"), ("Plain text", "plain")]
_BIND = [("Always", "none"), ("Where the prompt holds their trigger word", "prompt")]
_COMBINE = [("Mean (on the rotation group)", "mean"), ("Product (one after the other)", "product")]


@dataclass(frozen=True)
class SettingsPanel:
    """The settings and the buttons that start and stop the generation."""

    settings: Settings
    generate: gr.Button
    stop: gr.Button


def settings_panel(session: Session) -> SettingsPanel:
    """Build the settings panel."""
    default = session.default_request
    prompts = prompt_fields(default)
    with gr.Row(elem_classes="actions"):
        generate = gr.Button("Generate", variant="primary", elem_id="generate", scale=3)
        stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=90)
    heading("Adapters")
    adapters = adapter_picker(session, elem_id="adapters", label="adapters")
    combine = gr.Radio(
        _COMBINE,
        value=default.combine,
        label=LABELS["combine"],
        info="The mean is independent of the order; the product applies one adapter after the other.",
        elem_id="combine",
    )
    sampling = _sampling(session, default)
    image, image_strength = _image_to_image()
    control = control_panel(session, adapters, sampling["width"], sampling["height"])
    settings = Settings(
        prompt=prompts.prompt,
        negative_prompt=prompts.negative_prompt,
        adapters=adapters,
        combine=combine,
        **sampling,
        image=image,
        image_strength=image_strength,
        **control,
    )
    skip_preprocessing(*settings.components)
    count_tokens(session, prompts, settings.prompt_syntax, adapters)
    mark_sections(settings)
    return SettingsPanel(settings, generate, stop)


def _sampling(session: Session, default: GenerateRequest) -> dict[str, Any]:
    """Build the sampling accordion; return its components by the name of the setting."""
    multiple, schedulers = session.worker.base.multiple, session.worker.base.schedulers
    with gr.Accordion("Size, steps, seed", open=False, elem_id="image-settings"):
        with gr.Row():
            steps = gr.Slider(
                1, 150, default.steps, step=1, label=LABELS["steps"], info="Denoising steps", elem_id="steps"
            )
            guidance = gr.Slider(
                0,
                30,
                default.guidance_scale,
                step=0.5,
                label=LABELS["guidance_scale"],
                info="Weight of the prompt",
                elem_id="guidance",
            )
        with gr.Row():
            width = gr.Slider(8 * multiple, 2048, default.width, step=multiple, label=LABELS["width"], elem_id="width")
            height = gr.Slider(
                8 * multiple, 2048, default.height, step=multiple, label=LABELS["height"], elem_id="height"
            )
        with gr.Row():
            scheduler = gr.Dropdown(
                list(schedulers),
                value=schedulers[0],
                label=LABELS["scheduler"],
                info="The denoising method",
                elem_id="scheduler",
            )
            count = gr.Slider(1, 16, 1, step=1, label=LABELS["count"], info="Number of images", elem_id="count")
        with gr.Row():
            seed = gr.Number(default.seed, label=LABELS["seed"], precision=0, minimum=0, elem_id="seed")
            new_seed = gr.Checkbox(
                value=True, label="Random seed", info="A new seed for each request", elem_id="new-seed"
            )
        reading = _prompt_reading(default)
    return {
        **reading,
        "steps": steps,
        "guidance_scale": guidance,
        "width": width,
        "height": height,
        "scheduler": scheduler,
        "seed": seed,
        "new_seed": new_seed,
        "count": count,
    }


def _prompt_reading(default: GenerateRequest) -> dict[str, Any]:
    """Build the settings of how prompts are read; return them by the name of the setting."""
    clip_skip = gr.Number(
        None,
        label=LABELS["clip_skip"],
        info="Skipped layers of CLIP: 1 for many anime models (2 in A1111)",
        precision=0,
        minimum=0,
        elem_id="clip-skip",
    )
    prompt_syntax = gr.Radio(
        _PROMPT_SYNTAX,
        value=default.prompt_syntax,
        label=LABELS["prompt_syntax"],
        info="(word:1.2) and [word], prompts of any length; or text up to the model's maximum length",
        elem_id="prompt-syntax",
    )
    bind = gr.Radio(
        _BIND,
        value=default.bind,
        label=LABELS["bind"],
        info="By the trigger word: of the chosen adapters, or of the whole library if none is chosen",
        elem_id="bind",
    )
    return {"bind": bind, "prompt_syntax": prompt_syntax, "clip_skip": clip_skip}


def _image_to_image() -> tuple[gr.Image, gr.Slider]:
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
    return image, strength


def mark_sections(settings: Settings) -> None:
    """Mark closed sections that have an image."""
    for section, image in (("image-to-image", settings.image), ("control", settings.control_image)):
        listen(image.change, None, image, None, js=f"(image) => {{ markInUse('{section}', image); return []; }}")
