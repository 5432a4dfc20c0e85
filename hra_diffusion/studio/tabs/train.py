"""Teach: images in, a subject out. The lesson runs in a process of its own, and this tab finds it again."""

from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import named
from hra_diffusion.studio.tabs.job_view import job_view, names
from hra_diffusion.studio.tabs.picker import entries
from hra_diffusion.studio.tabs.settings import Settings
from hra_diffusion.studio.tabs.training_form import NAMES, lesson_of, presets, training_form


def build(session: Session, settings: Settings, library: gr.HTML) -> None:
    """Put the tab together."""
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=6, min_width=320, elem_classes="side"):
            form = training_form(session)
        with gr.Column(scale=6, min_width=320, elem_classes="canvas"):
            view = job_view(session)

    def start(*values: Any) -> Any:
        """Teach a subject in a process of its own; returns the run's name."""
        run = session.teach(lesson_of(values))
        return gr.update(choices=names(session), value=run.name), gr.Timer(active=True)

    def found_again() -> Any:
        going = session.runs.running()
        newest = going.name if going else next(iter(names(session)), None)
        said = gr.update(choices=presets(session))
        return gr.update(choices=names(session), value=newest), gr.Timer(active=going is not None), *cards(), said

    def cards() -> list[Any]:
        return [gr.update(entries=entries(session))] * 2

    both = [settings.picker, library]
    form.teach.click(named(start, *NAMES), form.inputs, [view.chosen, view.timer], api_name="teach")
    view.ended.change(cards, None, both, api_visibility="private", show_progress="hidden")
    gr.on(
        None,
        found_again,
        None,
        [view.chosen, view.timer, *both, form.preset],
        api_visibility="private",
        show_progress="hidden",
    )
