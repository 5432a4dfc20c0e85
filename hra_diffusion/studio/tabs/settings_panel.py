"""The settings panel of Generate: prompt, adapters, sampling, image to image and control."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.generation.requests import MAX_SCALE, GenerateRequest
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.base_field import base_field
from hra_diffusion.studio.tabs.common import heading, skip_preprocessing
from hra_diffusion.studio.tabs.control import control_panel
from hra_diffusion.studio.tabs.events import listen
from hra_diffusion.studio.tabs.inpainting import image_to_image_panel
from hra_diffusion.studio.tabs.labels import LABELS
from hra_diffusion.studio.tabs.picker import adapter_picker, card_entries
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
    base = base_field(
        session, info="Loaded for the next image; adapters of another base are marked", elem_id="base-model"
    )
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
    start = image_to_image_panel(session)
    hires = _hires_fix(default)
    control = control_panel(session, adapters, sampling["width"], sampling["height"])
    settings = Settings(
        prompt=prompts.prompt,
        negative_prompt=prompts.negative_prompt,
        adapters=adapters,
        combine=combine,
        **sampling,
        **start,
        **control,
        **hires,
        base=base,
    )
    skip_preprocessing(*settings.components)
    count_tokens(session, prompts, settings.prompt_syntax, adapters, base)
    mark_sections(settings)
    _follow_base(session, settings)
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


def _hires_fix(default: GenerateRequest) -> dict[str, Any]:
    """Build the accordion of the second pass at a larger size; return its components by the name of the setting."""
    with gr.Accordion("Upscale and refine (hires fix)", open=False, elem_id="hires-fix"):
        scale = gr.Slider(
            1,
            MAX_SCALE,
            default.hires_scale,
            step=0.1,
            label=LABELS["hires_scale"],
            info="1 is off. The image is upscaled by Lanczos, and refined by image to image",
            elem_id="hires-scale",
        )
        with gr.Row():
            steps = gr.Slider(
                0,
                150,
                default.hires_steps,
                step=1,
                label=LABELS["hires_steps"],
                info="0: as many as above",
                elem_id="hires-steps",
            )
            strength = gr.Slider(
                0.05,
                1,
                default.hires_strength,
                step=0.05,
                label=LABELS["hires_strength"],
                info="Low values keep the image",
                elem_id="hires-strength",
            )
    return {"hires_scale": scale, "hires_steps": steps, "hires_strength": strength}


def _follow_base(session: Session, settings: Settings) -> None:
    """Offer the schedulers, sizes and adapter marks of the chosen base, and start from its size and guidance."""

    def offer_settings(name: str) -> list[Any]:
        base = session.worker.bases.get(name)
        sides = gr.update(step=base.multiple, minimum=8 * base.multiple)
        cards = gr.update(entries=card_entries(session, base.name))
        return [gr.update(choices=list(base.schedulers)), sides, sides, gr.update(step=base.multiple), cards]

    def default_settings(name: str) -> list[Any]:
        base = session.worker.bases.get(name)
        return [base.schedulers[0], base.size, base.size, base.guidance_scale]

    sizes = [settings.scheduler, settings.width, settings.height]
    offered = [*sizes, settings.outpaint, settings.adapters]
    listen(settings.base.change, offer_settings, settings.base, offered, queue=False)
    listen(settings.base.input, default_settings, settings.base, [*sizes, settings.guidance_scale], queue=False)


def mark_sections(settings: Settings) -> None:
    """Mark closed sections that have an image."""
    images = {"image-to-image": settings.image, "inpainting": settings.mask_image, "control": settings.control_image}
    for section, image in images.items():
        listen(image.change, None, image, None, js=f"(image) => {{ markInUse('{section}', image); return []; }}")
