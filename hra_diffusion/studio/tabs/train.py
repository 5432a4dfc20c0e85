"""The Train tab: a form for a training job, and a view of it. The job runs in a process of its own."""

from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.training.finished_jobs import job_adapter
from hra_diffusion.studio.tabs.events import listen, listen_busy
from hra_diffusion.studio.tabs.job_actions import checked_name
from hra_diffusion.studio.tabs.job_components import is_active
from hra_diffusion.studio.tabs.job_view import job_view
from hra_diffusion.studio.tabs.picker import card_entries
from hra_diffusion.studio.tabs.settings import Settings
from hra_diffusion.studio.tabs.training_fields import TrainingFields, cloned_fields, job_from_values
from hra_diffusion.studio.tabs.training_form import training_form
from hra_diffusion.studio.tabs.training_numbers import preset_choices


def build_train_tab(session: Session, settings: Settings, library: gr.HTML, tabs: gr.Tabs) -> TrainingFields:
    """Build the tab; return the fields of a training job.

    Args:
        session: the studio's session.
        settings: the settings of Generate, whose adapter cards include new adapters.
        library: the adapter cards of the library, likewise.
        tabs: the tabs of the page, to open Generate.
    """
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=6, min_width=320, elem_classes="side"):
            form = training_form(session)
        with gr.Column(scale=6, min_width=320, elem_classes="results"):
            view = job_view(session)

    def start_training(*values: Any) -> Any:
        job = session.train(job_from_values(values))
        return gr.update(choices=session.jobs.names(), value=job.name), gr.Timer(active=True)

    def clone(job: str | None) -> list[Any]:
        return cloned_fields(session, checked_name(job))

    def try_job(job: str | None) -> list[Any]:
        entry = job_adapter(session.library, session.job(checked_name(job)))
        adapters = gr.update(entries=card_entries(session), value=[{"name": entry.name, "strength": 1.0}])
        base = entry.base if entry.base in session.worker.bases.names else gr.skip()
        return [gr.Tabs(selected="generate"), adapters, entry.trigger or gr.skip(), base]

    def update_cards() -> list[Any]:
        return [gr.update(entries=card_entries(session))] * 2

    def load_page(kind: str | None, base: str | None) -> Any:
        running, names = session.jobs.running(), session.jobs.names()
        job = gr.update(choices=names, value=running.name if running else next(iter(names), None))
        known = base if base in session.worker.bases.names else None  # the browser may remember another
        presets = gr.update(choices=preset_choices(session, kind, known))
        return job, gr.Timer(active=is_active(session)), *update_cards(), presets

    cards = [settings.adapters, library]
    listen_busy(form.train, "Starting…", start_training, form.fields.components, [view.job, view.timer])
    cloned = listen_busy(view.use_settings, "Loading…", clone, view.job, form.fields.components)
    form.show_captions(cloned.success)
    listen_busy(view.try_it, "Opening…", try_job, view.job, [tabs, settings.adapters, settings.prompt, settings.base])
    listen(view.ended.change, update_cards, None, cards)
    listen(settings.base.input, lambda base: base, settings.base, form.fields.base, queue=False)
    listen(None, load_page, [form.fields.kind, form.fields.base], [view.job, view.timer, *cards, form.fields.preset])
    return form.fields
