"""The choice of the base model, under Generate and for a training job."""

from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.labels import LABELS


def base_field(session: Session, **options: Any) -> gr.Dropdown:
    """Build the choice among the studio's bases, hidden with a single one; options are those of gr.Dropdown."""
    names = session.worker.bases.names
    return gr.Dropdown(names, value=names[0], label=LABELS["base"], visible=len(names) > 1, **options)
