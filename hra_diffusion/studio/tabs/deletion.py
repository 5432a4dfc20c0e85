"""The confirmation of a deletion: a question with the name, and the buttons Delete permanently and Cancel."""

import html
from collections.abc import Callable
from typing import Any

import gradio as gr

from hra_diffusion.studio.tabs.events import listen


def deletion(
    delete: gr.Button, chosen: gr.components.Component, name: Callable[[Any], str | None] = lambda value: value
) -> tuple[gr.Group, gr.Button]:
    """Build a confirmation, hidden until the button is clicked.

    Args:
        delete: the button.
        chosen: the component with the thing to delete.
        name: returns the name in the question, given the component's value; the question is hidden without one.

    Returns:
        The confirmation, and its button Delete permanently.
    """
    with gr.Group(visible=False, elem_classes="panel") as confirmation:
        question = gr.HTML("")
        with gr.Row():
            confirm = gr.Button("Delete permanently", variant="stop", elem_id=f"confirm-{delete.elem_id}")
            cancel = gr.Button("Cancel", elem_id=f"cancel-{delete.elem_id}")

    def ask_for_confirmation(value: Any) -> Any:
        named = name(value)
        escaped = html.escape(str(named)[:80])
        return gr.update(visible=bool(named)), f"<p class='note'>Delete <b>{escaped}</b>? This cannot be undone.</p>"

    listen(delete.click, ask_for_confirmation, chosen, [confirmation, question], queue=False)
    listen(cancel.click, lambda: gr.update(visible=False), None, confirmation, queue=False)
    return confirmation, confirm
