"""The view of a training job, updated once a second: status, losses, validation images and final metrics."""

import html
from dataclasses import dataclass
from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.job import Job, Status
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import (
    empty_state,
    format_duration,
    note,
    served_copy,
    strip_folders,
)
from hra_diffusion.studio.tabs.events import listen, listen_busy
from hra_diffusion.studio.tabs.labels import LABELS
from hra_diffusion.studio.tabs.loss_plot import loss_plot
from hra_diffusion.studio.tabs.metrics_summary import metrics_summary

_NO_JOB = empty_state("No training job", "Choose images, fill in name and class, and press Train.")
_MAX_VALIDATION_IMAGES = 12
_NOT_DISPLAYED = ("", -1, "")
_TITLES = {
    Status.RUNNING: "Training in progress",
    Status.FINISHED: "Finished: the adapter is in the library",
    Status.STOPPED: "Stopped",
}
_PROBLEMS = {Status.FAILED: "Training failed", Status.UNREADABLE: "This job cannot be read"}


@dataclass(frozen=True)
class JobView:
    """The components of the view."""

    job: gr.Dropdown
    status: gr.HTML
    stop: gr.Button
    resume: gr.Button
    use_settings: gr.Button
    """Fills the form with the settings of the job."""
    change: gr.Button
    """Displays the panel that renames and deletes the job."""
    loss: gr.HTML
    validation_images: gr.Gallery
    metrics: gr.HTML
    timer: gr.Timer
    """Updates the view."""
    displayed: gr.State
    """Name, step and status of the displayed job: losses and images are sent only when it changes."""
    ended: gr.State
    """Name of the displayed job once it has ended; its change event reports new adapters."""


def job_view(session: Session) -> JobView:
    """Build the view."""
    view = _job_components(session)
    _connect_updates(session, view)
    _connect_actions(session, view)
    _connect_changes(session, view)
    return view


def job_names(session: Session) -> list[str]:
    """Return the names of all training jobs, the newest first."""
    return [job.name for job in session.jobs.all()]


def _job_components(session: Session) -> JobView:
    running = session.jobs.running()
    job = gr.Dropdown(
        job_names(session),
        value=running and running.name,
        label="Training job",
        allow_custom_value=True,  # gradio checks against the choices at page load, which lack newer jobs
        elem_id="job",
    )
    status = gr.HTML(_NO_JOB, elem_id="job-status")
    with gr.Row(elem_classes="tools"):
        stop = gr.Button("Stop", size="sm", visible=False, elem_id="stop-job")
        resume = gr.Button("Resume", size="sm", visible=False, elem_id="resume-job")
        use_settings = gr.Button("Use settings", size="sm", visible=False, elem_id="clone-job")
        change = gr.Button("Rename or delete…", size="sm", visible=False, elem_id="change-job")
    loss = gr.HTML("", label="loss", elem_id="loss")
    validation_images = gr.Gallery(
        label="Validation images",
        show_label=False,
        columns=3,
        height="auto",
        object_fit="contain",
        format="png",
        visible=False,
        interactive=False,
        elem_id="validation-images",
    )
    metrics = gr.HTML("", label="metrics", elem_id="metrics")
    timer = gr.Timer(1.0, active=running is not None)
    displayed, ended = gr.State(_NOT_DISPLAYED), gr.State("")
    return JobView(
        job, status, stop, resume, use_settings, change, loss, validation_images, metrics, timer, displayed, ended
    )


def _connect_updates(session: Session, view: JobView) -> None:
    """Update the view with its timer and when another job is chosen."""

    def update(name: str | None, displayed: tuple[str, int, str]) -> list[Any]:
        if not name:
            hidden = gr.update(visible=False)
            return [_NO_JOB, *[hidden] * 4, "", hidden, "", gr.Timer(active=False), displayed, ""]
        job = session.job(name)
        current = (job.name, job.step, job.status.value)
        running, changed = job.status is Status.RUNNING, current != tuple(displayed)
        return [
            _status(job),
            gr.update(visible=running),
            gr.update(visible=job.resumable),
            gr.update(visible=job.status is not Status.UNREADABLE),
            gr.update(visible=not running),
            loss_plot(job.records()) if changed else gr.skip(),
            _gallery(session, job) if changed else gr.skip(),
            metrics_summary(job),
            gr.Timer(active=running),
            current,
            "" if running else job.name,
        ]

    outputs = [
        view.status,
        view.stop,
        view.resume,
        view.use_settings,
        view.change,
        view.loss,
        view.validation_images,
        view.metrics,
        view.timer,
        view.displayed,
        view.ended,
    ]
    for event in (view.timer.tick, view.job.change):
        listen(event, update, [view.job, view.displayed], outputs)


def _connect_actions(session: Session, view: JobView) -> None:
    """Connect the buttons Stop and Resume."""

    def stop_job(job: str | None) -> None:
        session.jobs.stop(checked_name(job))

    def resume_job(job: str | None) -> Any:
        session.jobs.resume(checked_name(job))
        return gr.Timer(active=True)

    listen_busy(view.stop, "Stopping…", stop_job, view.job, None)
    listen_busy(view.resume, "Resuming…", resume_job, view.job, view.timer)


def _connect_changes(session: Session, view: JobView) -> None:
    """Connect the panel that renames and deletes the job."""
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
        names = job_names(session)
        return gr.update(choices=names, value=next(iter(names), None)), hidden

    def rename_job(job: str | None, new_name: str) -> Any:
        renamed = session.jobs.rename(checked_name(job), new_name)
        return gr.update(choices=job_names(session), value=renamed.name), hidden, ""

    listen(view.change.click, lambda: gr.update(visible=True), None, panel, queue=False)
    listen([cancel.click, view.job.change], lambda: hidden, None, panel, queue=False)
    listen_busy(confirm, "Deleting…", delete_job, view.job, [view.job, panel])
    listen_busy(rename, "Renaming…", rename_job, [view.job, new_name], [view.job, panel, new_name])


def checked_name(name: str | None) -> str:
    """Return the name of the chosen job; raise ConfigError without one."""
    if not name or not isinstance(name, str):
        raise ConfigError("Choose a training job first.")
    return name


def _status(job: Job) -> str:
    """Return the HTML of a job's status."""
    if job.status in _PROBLEMS:
        error = html.escape(strip_folders(job.error or ""))
        return f'<div class="status failed" role="alert"><b>{_PROBLEMS[job.status]}</b><p>{error}</p></div>'
    left = f" · {format_duration(job.seconds_left)} left" if job.seconds_left else ""
    running = job.status is Status.RUNNING
    text = html.escape(f"{job.phase}{left}" if running else f"{job.step} of {job.total_steps} steps")
    return (
        f'<div class="status {job.status.value}" role="status"><b>{_TITLES[job.status]}</b><p>{text}</p>'
        f'<progress max="{max(1, job.total_steps)}" value="{job.step}" aria-label="{text}"></progress></div>'
    )


def _gallery(session: Session, job: Job) -> Any:
    """Return the newest validation images as an update of the gallery."""
    images = job.validation_images()[:_MAX_VALIDATION_IMAGES]
    return gr.update(
        value=[(served_copy(session, path), f"step {step}") for step, path in images], visible=bool(images)
    )
