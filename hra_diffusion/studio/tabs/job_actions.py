"""The actions of the displayed training job: stop, resume, rename, delete, and its checkpoints as adapters."""

from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.training.job_checkpoints import add_checkpoint
from hra_diffusion.studio.tabs.common import note
from hra_diffusion.studio.tabs.events import listen, listen_busy
from hra_diffusion.studio.tabs.job_components import JobView
from hra_diffusion.studio.tabs.labels import LABELS


def checked_name(name: str | None) -> str:
    """Return the name of the chosen job; raise ConfigError without one."""
    if not name or not isinstance(name, str):
        raise ConfigError("Choose a training job first.")
    return name


def connect_actions(session: Session, view: JobView) -> None:
    """Connect the buttons for stopping and resuming the job, and for removing it from the queue."""

    def stop_job(job: str | None) -> Any:
        session.jobs.stop(checked_name(job))
        return gr.Timer(active=True)

    def resume_job(job: str | None) -> Any:
        session.jobs.resume(checked_name(job))
        return gr.Timer(active=True)

    listen_busy(view.stop, "Stopping…", stop_job, view.job, view.timer)
    listen_busy(view.unqueue, "Removing…", stop_job, view.job, view.timer)
    listen_busy(view.resume, "Resuming…", resume_job, view.job, view.timer)


def connect_checkpoints(session: Session, view: JobView) -> None:
    """Connect the button that adds a checkpoint to the library."""

    def use_checkpoint(job: str | None, step: str | None) -> tuple[str, str]:
        text = str(step or "")
        chosen = session.jobs.get(checked_name(job))
        entry = add_checkpoint(session.library, chosen, int(text) if text.isdecimal() else step)
        return note(f"The library has the checkpoint of step {text} as “{entry.name}”."), entry.name

    listen_busy(
        view.use_checkpoint, "Adding…", use_checkpoint, [view.job, view.checkpoint], [view.checkpoint_note, view.ended]
    )
    listen(view.job.change, lambda: "", None, view.checkpoint_note, queue=False)


def connect_changes(session: Session, view: JobView) -> None:
    """Build and connect the panel that renames and deletes the job."""
    with gr.Group(visible=False, elem_classes="panel", elem_id="change-job-panel") as panel:
        with gr.Row():
            new_name = gr.Textbox(label=LABELS["new_name"], elem_id="new-job-name")
            rename = gr.Button("Rename", elem_id="rename-job")
        gr.HTML(note("Deleting removes its images, checkpoints and results. Its adapter stays in the library."))
        with gr.Row():
            confirm = gr.Button("Delete permanently", variant="stop", elem_id="confirm-delete-job")
            cancel = gr.Button("Cancel", elem_id="cancel-change-job")
    hidden = gr.update(visible=False)

    def delete_job(job: str | None) -> Any:
        session.jobs.delete(checked_name(job))
        names = session.jobs.names()
        return gr.update(choices=names, value=next(iter(names), None)), hidden

    def rename_job(job: str | None, new_name: str) -> Any:
        renamed = session.jobs.rename(checked_name(job), new_name)
        return gr.update(choices=session.jobs.names(), value=renamed.name), hidden, ""

    listen(view.change.click, lambda: gr.update(visible=True), None, panel, queue=False)
    listen([cancel.click, view.job.change], lambda: hidden, None, panel, queue=False)
    listen_busy(confirm, "Deleting…", delete_job, view.job, [view.job, panel])
    listen_busy(rename, "Renaming…", rename_job, [view.job, new_name], [view.job, panel, new_name])
