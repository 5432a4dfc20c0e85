"""The settings of image generation as components, and the request made from their values."""

import functools
import inspect
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.errors import ImageError
from hra_diffusion.studio.engine.generation.conditions import AS_TRAINED, NO_ANNOTATOR
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.images.inpainting import SIDES, with_mask, with_outpainting
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import client_id, named_parameters, served_copy


@dataclass(frozen=True)
class Settings:
    """The components of the settings, by parameter name of the API and in the API's order."""

    prompt: gr.Textbox
    negative_prompt: gr.Textbox
    adapters: gr.HTML
    combine: gr.Radio
    steps: gr.Slider
    guidance_scale: gr.Slider
    width: gr.Slider
    height: gr.Slider
    scheduler: gr.Dropdown
    seed: gr.Number
    new_seed: gr.Checkbox
    count: gr.Slider
    image: gr.Image
    image_strength: gr.Slider
    control_image: gr.Image
    annotator: gr.Dropdown
    control_start: gr.Slider
    control_end: gr.Slider
    clip_skip: gr.Number
    prompt_syntax: gr.Radio
    bind: gr.Radio
    mask_image: gr.Image
    mask_blur: gr.Slider
    outpaint: gr.Slider
    outpaint_sides: gr.CheckboxGroup
    hires_scale: gr.Slider
    hires_steps: gr.Slider
    hires_strength: gr.Slider
    base: gr.Dropdown

    @property
    def components(self) -> list[gr.components.Component]:
        """All components, in the order of `SETTINGS`."""
        return [getattr(self, name) for name in SETTINGS]


SETTINGS = tuple(field.name for field in fields(Settings))
"""Names of the settings, for the page and the API."""
_MAX_RANDOM_SEED = 2**31


def handle_request(session: Session, handler: Callable[..., Any], *extra: str) -> Callable[..., Any]:
    """Return a function of the settings' values that calls ``handler(session, request, client, *extra)``.

    Args:
        session: the studio's session.
        handler: a function, or a generator function.
        extra: names of the parameters after the settings.
    """

    def arguments(values: Sequence[Any]) -> tuple[Any, ...]:
        *inputs, client = values
        request = request_from_settings(session, dict(zip(SETTINGS, inputs, strict=False)))
        return session, request, client_id(client), *inputs[len(SETTINGS) :]

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def generator(*values: Any) -> Iterator[Any]:
            yield from handler(*arguments(values))

        return named_parameters(generator, *SETTINGS, *extra)

    @functools.wraps(handler)
    def function(*values: Any) -> Any:
        return handler(*arguments(values))

    return named_parameters(function, *SETTINGS, *extra)


def request_from_settings(session: Session, values: dict[str, Any]) -> GenerateRequest:
    """Make the request from the settings' values; raises ConfigError, and ImageError for unusable images."""
    if values.get("new_seed"):
        values["seed"] = secrets.randbelow(_MAX_RANDOM_SEED)
    if values.get("base") == session.worker.base.name:
        values["base"] = None
    image = values.pop("image", None)
    request = GenerateRequest.from_json(values)
    if image:
        request = session.with_start_image(request, Path(image))
    if values.get("mask_image"):
        request = with_mask(request, Path(values["mask_image"]), session.uploads)
    request = with_outpainting(request, values.get("outpaint"), values.get("outpaint_sides"), session.uploads)
    if values.get("control_image"):
        request = session.with_condition(request, Path(values["control_image"]), values["annotator"])
    return request


def settings_from_request(session: Session, request: GenerateRequest) -> list[Any]:
    """Return the settings' values for a request, in the order of `SETTINGS`; deleted uploads are omitted."""
    values = vars(request) | {
        "adapters": request.to_json()["adapters"],
        "base": request.base or session.worker.base.name,
        "new_seed": False,
        "count": 1,
        "image": _served_upload(session, request.image),
        "mask_image": _served_upload(session, request.mask),
        "outpaint": 0,
        "outpaint_sides": list(SIDES),
        "control_image": _served_upload(session, request.condition),
        "annotator": NO_ANNOTATOR if request.condition else AS_TRAINED,
    }
    return [values[name] for name in SETTINGS]


def _served_upload(session: Session, digest: str | None) -> str | None:
    try:
        return served_copy(session, session.uploads.path(digest)) if digest else None
    except ImageError as error:
        gr.Warning(str(error))
        return None
