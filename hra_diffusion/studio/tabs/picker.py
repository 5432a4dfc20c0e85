"""Adapter cards: one can be selected for its details, or several, each with a strength, for generation."""

from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import thumbnail_url

_SCRIPT = (Path(__file__).parents[1] / "picker.js").read_text(encoding="utf-8")


def adapter_picker(session: Session, *, single: bool = False, **options: Any) -> gr.HTML:
    """Build adapter cards; their value is a list of {"name": …, "strength": …}, or a name with ``single``.

    gr.HTML is not subclassed: gradio writes a stub file beside the source of each subclass.
    """
    picker = gr.HTML(
        None if single else [],
        html_template=f'<div class="cards{" single" * single}"></div>',
        js_on_load=_SCRIPT,
        apply_default_css=False,
        entries=card_entries(session),
        **options,
    )
    use = {"type": "object", "properties": {"name": {"type": "string"}, "strength": {"type": "number"}}}
    name = {"type": "string", "description": "an adapter's name"}
    uses = {"type": "array", "items": use, "description": "adapters with their strengths, 0 to 1.5"}
    picker.api_info = lambda: name if single else uses
    picker.example_payload = lambda: "tiger" if single else [{"name": "tiger", "strength": 0.8}]
    return picker


def card_entries(session: Session, base: str | None = None) -> list[dict[str, Any]]:
    """Return the content of the cards, with a mark on adapters of another base, by default than the studio's first."""
    session.import_finished_jobs()
    name = base or session.worker.base.name
    return [
        {
            "name": entry.name,
            "base": entry.base or "unknown base",
            "fits": entry.base in (None, name),
            "rank": entry.rank,
            "annotator": entry.annotator or "",
            "token": entry.token or entry.trigger or "",
            "changed": entry.stamp // 1_000_000_000,
            "thumbnail": thumbnail_url(entry.thumbnail, 160),
        }
        for entry in session.library.entries()
    ]
