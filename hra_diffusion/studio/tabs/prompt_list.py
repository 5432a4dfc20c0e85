"""Prompts from a list: a section of Generate that generates the images of one prompt a line."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.generation.events import Progress
from hra_diffusion.studio.engine.generation.prompt_list import MAX_LINES, list_requests, read_prompt_file
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.images.image_store import SavedImage
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import gallery_items, model_options, note
from hra_diffusion.studio.tabs.events import listen, listen_after, listen_busy
from hra_diffusion.studio.tabs.generation_status import generation_progress
from hra_diffusion.studio.tabs.settings import Settings, handle_request

_HELP = (
    f"One prompt a line, at most {MAX_LINES}; {{prompt}} stands for the prompt above. All other settings are those of "
    "this page. Each prompt is an item of the queue."
)
_MAX_CAPTION = 60


def build_prompt_list(session: Session, settings: Settings, gallery: gr.Gallery, status: gr.HTML) -> Any:
    """Build the section; return the event of a generation, whose failure the status reports."""
    with gr.Accordion("Prompts from a list", open=False, elem_id="prompt-list"):
        prompts = gr.Textbox(
            label="Prompts", info="One a line", lines=4, max_lines=12, elem_id="list-of-prompts", max_length=1_000_000
        )
        next_seeds = gr.Checkbox(
            label="Next seed for every line", info="By default, all prompts have the same seed", elem_id="next-seeds"
        )
        file = gr.File(label="Text file with prompts", file_types=[".txt"], height=120, elem_id="prompt-file")
        gr.HTML(note(_HELP))
        button = gr.Button("Generate list", elem_id="generate-list")

    def read_file(path: str | None) -> str:
        return read_prompt_file(Path(path or ""))

    upload = listen(file.upload, read_file, file, prompts)
    listen_after(upload, lambda: None, None, file, queue=False)  # free for the next file
    return listen_busy(
        button,
        "Generating…",
        handle_request(session, _generate_list, "prompts", "next_seeds"),
        [*settings.components, prompts, next_seeds],
        [gallery, settings.seed, status],
        **model_options(session),
    )


def _generate_list(
    session: Session, request: GenerateRequest, client: str, prompts: str, next_seeds: bool
) -> Iterator[Any]:
    """Generate the images of a list: update the gallery, the seed and the status."""
    requests = list_requests(request, prompts, next_seeds=bool(next_seeds))
    total, start, items = len(requests) * request.count, None, []
    for event in session.generate_list(requests, client):
        if isinstance(event, SavedImage):
            ((path, seed),) = gallery_items(session, [event])
            prompt = event.request.prompt
            items.append((path, f"{prompt[:_MAX_CAPTION]}{'…' * (len(prompt) > _MAX_CAPTION)} · {seed}"))
            yield items, request.seed, gr.skip()
        else:
            if isinstance(event, Progress):
                start = start or time.monotonic()  # the model is loaded
                event = _whole_progress(event, len(items), total, time.monotonic() - start)
            yield gr.skip(), request.seed, generation_progress(event, request)
    status = "" if len(items) == total else note(f"Stopped: {len(items)} of {total} images.")
    yield items or gr.skip(), request.seed, status


def _whole_progress(event: Progress, finished: int, total: int, seconds: float) -> Progress:
    """Return the progress of one request as that of the list: its images and remaining time.

    Args:
        event: the progress of a request.
        finished: number of finished images of the list.
        total: number of its images.
        seconds: time since the first step was done.
    """
    done = finished * event.steps + event.step
    left = seconds / max(1, done - 1) * (total * event.steps - done) or event.seconds_left
    return replace(event, image=finished, images=total, seconds_left=left)
