"""Adapters as cards: one to look at, or several to draw with, each with its strength."""

from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import data_url

_SCRIPT = (Path(__file__).parents[1] / "picker.js").read_text(encoding="utf-8")


def adapter_picker(session: Session, *, single: bool = False, **options: Any) -> gr.HTML:
    """Cards to choose from. Their value is a list of {"name": …, "strength": …}, or with ``single`` a name.

    No subclass: gradio writes a stub file beside the source of every one.
    """
    picker = gr.HTML(
        None if single else [],
        html_template=f'<div class="cards{" single" * single}"></div>',
        js_on_load=_SCRIPT,
        apply_default_css=False,
        entries=entries(session),
        **options,
    )
    use = {"type": "object", "properties": {"name": {"type": "string"}, "strength": {"type": "number"}}}
    name = {"type": "string", "description": "an adapter's name"}
    uses = {"type": "array", "items": use, "description": "adapters with their strengths, 0 to 1.5"}
    picker.api_info = lambda: name if single else uses
    picker.example_payload = lambda: "tiger" if single else [{"name": "tiger", "strength": 0.8}]
    return picker


def entries(session: Session) -> list[dict[str, Any]]:
    """What the cards show."""
    session.adopt_finished()
    return [
        {
            "name": entry.name,
            "base": entry.base or "base not said",
            "fits": entry.base in (None, session.model.base.name),
            "rank": entry.rank,
            "follows": entry.annotator or "",
            "trigger": entry.trigger or "",
            "image": data_url(entry.thumbnail, 160) if entry.thumbnail else "",
            "own": not entry.built_in,
        }
        for entry in session.library.entries()
    ]
