"""The panel of the Library tab that compares an adapter with the others."""

import html

import gradio as gr

from hra_diffusion.studio.engine.adapters.similarity import similar_adapters
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.events import listen, listen_busy

_EXPLANATION = (
    "Cosine: 1 for the same rotation, 0 for unrelated ones, −1 for the inverse. Commutator norm: 0 if the order of "
    "both has no effect."
)


def build_similar_panel(session: Session, picker: gr.HTML) -> None:
    """Build the panel; a new selection clears it."""
    with gr.Accordion("Similar adapters", open=False, elem_id="similar-adapters"):
        button = gr.Button("Compare with the library", elem_id="compare-adapters")
        result = gr.HTML("", elem_id="similarities")

    def compare_with_library(name: str) -> str:
        return similarity_table(session, name)

    def clear_similarities(_: str | None) -> str:
        return ""

    listen_busy(button, "Comparing…", compare_with_library, picker, result)
    listen(picker.change, clear_similarities, picker, result)


def similarity_table(session: Session, name: str) -> str:
    """Return the HTML of the other adapters, the most similar first."""
    results, others = similar_adapters(session.library, name)
    rows = "".join(
        f"<tr><td>{html.escape(similar.name)}</td><td>{similar.cosine:.3f}</td><td>{similar.commutator:.3f}</td>"
        f"<td>{similar.angle:.1f}°</td></tr>"
        for similar in results
    )
    head = "<tr><th>Adapter</th><th>Cosine</th><th>Commutator norm</th><th>Smallest angle</th></tr>"
    table = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>" if results else "<p>No other adapter fits.</p>"
    listed = f"<p>For other models: {html.escape(', '.join(others))}.</p>" if others else ""
    return f"{table}{listed}<p>{_EXPLANATION}</p>"
