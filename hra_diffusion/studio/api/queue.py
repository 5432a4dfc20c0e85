"""Endpoints of lists of prompts and of the queue of generations."""

from dataclasses import asdict
from typing import Any

import gradio as gr

from hra_diffusion.studio.api.endpoints import expose
from hra_diffusion.studio.engine.generation.prompt_list import list_requests
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.images.image_store import SavedImage
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import client_id, gallery_items, model_options
from hra_diffusion.studio.tabs.settings import Settings, handle_request


def expose_queue(session: Session, settings: Settings) -> None:
    """Add the endpoints."""
    inputs = [*settings.components, gr.Textbox("", label="prompts"), gr.Checkbox(False, label="next_seeds")]
    outputs = [gr.Gallery(label="images", type="filepath", format="png"), gr.Number(label="seed")]
    handler = handle_request(session, _generate_list, "prompts", "next_seeds")
    expose("generate_list", handler, inputs, outputs, **model_options(session))

    def queue(client: gr.Request) -> list[dict[str, Any]]:
        """Return the generations in progress and waiting, in order; those of other clients without id and prompt."""
        return [asdict(row) for row in session.queue.client_rows(client_id(client))]

    def cancel(id: str, client: gr.Request) -> str:
        """Cancel one generation of this client, by its id in /queue, within one step. Returns the id."""
        session.queue.cancel(id, client_id(client))
        return id

    expose("queue", queue, [], gr.JSON(label="queue"), queue=False)
    expose("cancel", cancel, [gr.Textbox(label="id")], gr.Textbox(label="canceled"), queue=False)


def _generate_list(
    session: Session, request: GenerateRequest, client: str, prompts: str, next_seeds: bool
) -> tuple[Any, int]:
    """Generate the images of a list of prompts, one a line, one after the other. Returns their files, and the seed.

    With next_seeds, each line continues with the seed after those of the line before.
    """
    requests = list_requests(request, prompts, next_seeds=bool(next_seeds))
    saved = [event for event in session.generate_list(requests, client) if isinstance(event, SavedImage)]
    return gallery_items(session, saved), request.seed
