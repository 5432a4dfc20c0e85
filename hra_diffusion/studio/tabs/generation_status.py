"""The status of a generation as HTML: progress with a preview, and warnings."""

from hra_diffusion.studio.engine.generation.events import Loading, Progress, Queued
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.tabs.common import data_url, empty_state, format_duration, note, quote_start
from hra_diffusion.studio.tabs.labels import LABELS

_MAX_ZOOM = 3
"""Small images are enlarged at most this many times; studio.js has the same number."""


def generation_progress(event: Loading | Queued | Progress, request: GenerateRequest) -> str:
    """Return the HTML of a generation's progress: the preview, the step and the remaining time."""
    if isinstance(event, Loading):
        return empty_state("Loading the model", "It takes some seconds; the next images start at once.")
    if isinstance(event, Queued):
        text = f"Requests before yours: {event.ahead}. The model generates for one request at a time."
        return empty_state("Queued", text)
    image = f"Image {event.image + 1} of {event.images} · " if event.images > 1 else ""
    fraction = (event.image * event.steps + event.step) / (event.images * event.steps)
    text = f"{image}step {event.step} of {event.steps} · {format_duration(event.seconds_left)} left"
    return (
        f'<figure class="preview"><img src="{data_url(event.preview)}" alt="Preview of the image" '
        f'style="max-width: {_MAX_ZOOM * request.width}px">'
        f'<figcaption role="status">{text}</figcaption>'
        f'<progress max="1" value="{fraction:.3f}" aria-label="{text}"></progress></figure>'
    )


def truncation_warnings(ends: dict[str, str]) -> str:
    """Return the HTML of warnings with the ignored ends of the prompts, by the setting."""
    return "".join(
        f'<p class="note warning">The {LABELS[name].lower()} is too long; its end is ignored: {quote_start(end)}</p>'
        for name, end in ends.items()
    )


def restored_settings(request: GenerateRequest, changes: list[str]) -> str:
    """Return the HTML of the loaded, the missing and the changed settings."""
    adapters = ", ".join(f"{use.name} at {use.strength:g}" for use in request.adapters)
    parts = [
        "prompt",
        "negative prompt" if request.negative_prompt else "",
        f"adapters {adapters}" if adapters else "no adapter",
        f"{request.steps} steps",
        f"guidance {request.guidance_scale:g}",
        f"{request.width} × {request.height}",
        f"scheduler {request.scheduler}",
        f"seed {request.seed}",
        "start image" if request.image else "",
        "mask" if request.mask else "",
        f"upscale by {request.hires_scale:g}" if request.hires_scale > 1 else "",
        "control image" if request.condition else "",
    ]
    text = f"Loaded: {', '.join(part for part in parts if part)}."
    return note(text) + "".join(note(change, "warning") for change in changes)
