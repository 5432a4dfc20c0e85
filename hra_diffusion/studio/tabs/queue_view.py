"""The queue as a section of Generate: a client's generations with a Cancel button, those of others without prompts."""

import html
from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.generation.generation_queue import QueueRow
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import client_id, note
from hra_diffusion.studio.tabs.events import listen

_SCRIPT = (Path(__file__).parents[1] / "queue_view.js").read_text(encoding="utf-8")
_SECONDS = 2.0
_EMPTY = note("No generation is in progress or waiting.")
_MAX_ROWS = 120


def build_queue(session: Session) -> None:
    """Build the section, whose open list is updated every two seconds."""
    with gr.Accordion("Queue", open=False, elem_id="queue-section") as section:
        queue = gr.HTML(_EMPTY, label="queue", elem_id="queue", js_on_load=_SCRIPT)
    timer = gr.Timer(_SECONDS, active=False)

    def rows_of_client(client: gr.Request) -> str:
        return queue_html(session.queue.client_rows(client_id(client)))

    def open_section(client: gr.Request) -> Any:
        return rows_of_client(client), gr.Timer(active=True)

    def cancel_item(event: gr.EventData, client: gr.Request) -> str:
        session.queue.cancel(event._data.get("item"), client_id(client))
        return rows_of_client(client)

    listen(section.expand, open_section, None, [queue, timer], queue=False)
    listen(section.collapse, lambda: gr.Timer(active=False), None, timer, queue=False)
    listen(timer.tick, rows_of_client, None, queue, queue=False)
    listen(queue.remove, cancel_item, None, queue, queue=False)


def queue_html(rows: list[QueueRow]) -> str:
    """Return the HTML of the queue."""
    if not rows:
        return _EMPTY
    more = note(f"and {len(rows) - _MAX_ROWS} more") if len(rows) > _MAX_ROWS else ""
    return f'<ol class="queue">{"".join(map(_row_html, rows[:_MAX_ROWS]))}</ol>{more}'


def _row_html(row: QueueRow) -> str:
    position = "In progress" if row.position == 0 else f"{row.position} before it"
    images = "1 image" if row.images == 1 else f"{row.images} images"
    if not row.is_mine:
        return f"<li><b>{position}</b><span>another visitor</span><small>{images}</small></li>"
    prompt = html.escape(row.prompt)
    label = html.escape(f"Cancel: {row.prompt}", quote=True)
    button = f'<button type="button" data-item="{row.id}" aria-label="{label}">Cancel</button>'
    return f"<li><b>{position}</b><q>{prompt}</q><small>{images}</small>{button}</li>"
