"""The view of a training job, updated once a second: status, losses, validation images and final metrics."""

import html
from dataclasses import dataclass
from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.jobs import Job, Status
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import (
    ask_for_confirmation,
    empty_state,
    format_duration,
    reports_errors,
    served_copy,
    strip_folders,
)
from hra_diffusion.studio.tabs.loss_plot import loss_plot

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
    delete: gr.Button
    loss: gr.HTML
    validation_images: gr.Gallery
    metrics: gr.Markdown
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
    _connect_deletion(session, view)
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
        delete = gr.Button("Delete…", size="sm", visible=False, elem_id="delete-job")
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
    metrics = gr.Markdown("", elem_id="metrics")
    timer = gr.Timer(1.0, active=running is not None)
    displayed, ended = gr.State(_NOT_DISPLAYED), gr.State("")
    return JobView(job, status, stop, resume, delete, loss, validation_images, metrics, timer, displayed, ended)


def _connect_updates(session: Session, view: JobView) -> None:
    """Update the view with its timer and when another job is chosen."""

    @reports_errors
    def update(name: str | None, displayed: tuple[str, int, str]) -> list[Any]:
        if not name:
            hidden = gr.update(visible=False)
            return [_NO_JOB, hidden, hidden, hidden, "", hidden, "", gr.Timer(active=False), displayed, ""]
        job = session.job(name)
        current = (job.name, job.step, job.status.value)
        running, changed = job.status is Status.RUNNING, current != tuple(displayed)
        return [
            _status(job),
            gr.update(visible=running),
            gr.update(visible=job.resumable),
            gr.update(visible=not running),
            loss_plot(job.records()) if changed else gr.skip(),
            _gallery(session, job) if changed else gr.skip(),
            job.metrics_table() or "",
            gr.Timer(active=running),
            current,
            "" if running else job.name,
        ]

    outputs = [
        view.status,
        view.stop,
        view.resume,
        view.delete,
        view.loss,
        view.validation_images,
        view.metrics,
        view.timer,
        view.displayed,
        view.ended,
    ]
    for event in (view.timer.tick, view.job.change):
        event(update, [view.job, view.displayed], outputs, show_progress="hidden", api_visibility="private")


def _connect_actions(session: Session, view: JobView) -> None:
    """Connect the buttons Stop and Resume, and add the endpoints of training jobs."""

    @reports_errors
    def job_status(job: str | None) -> dict[str, Any]:
        """Return the status of a training job."""
        current = session.job(_checked_name(job))
        return {
            "name": current.name,
            "status": current.status.value,
            "phase": current.phase,
            "step": current.step,
            "steps": current.total_steps,
            "error": current.error and strip_folders(current.error),
            "losses": [record.loss for record in current.records()],
            "metrics": current.metrics_table(),
        }

    @reports_errors
    def stop_job(job: str | None) -> None:
        """Stop a training job after its current step. It can be resumed later."""
        session.jobs.stop(_checked_name(job))

    @reports_errors
    def resume_job(job: str | None) -> Any:
        """Resume a training job from its last checkpoint."""
        session.jobs.resume(_checked_name(job))
        return gr.Timer(active=True)

    def list_jobs() -> list[str]:
        """Return the names of all training jobs, the newest first."""
        return job_names(session)

    view.stop.click(stop_job, view.job, None, api_name="stop_job")
    view.resume.click(resume_job, view.job, view.timer, api_name="resume_job")
    gr.api(job_status, api_name="job")
    gr.api(list_jobs, api_name="jobs")


def _connect_deletion(session: Session, view: JobView) -> None:
    """Let the button Delete ask for a confirmation, and delete the job."""
    with gr.Group(visible=False, elem_classes="panel") as confirmation:
        question = gr.HTML("")
        with gr.Row():
            confirm = gr.Button("Delete permanently", variant="stop", elem_id="confirm-delete-job")
            cancel = gr.Button("Cancel", elem_id="cancel-delete-job")

    @reports_errors
    def delete_job(job: str | None) -> Any:
        """Delete a training job with its images and checkpoints. Its adapter stays in the library."""
        session.jobs.delete(_checked_name(job))
        names = job_names(session)
        return gr.update(choices=names, value=next(iter(names), None)), gr.update(visible=False)

    options: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    view.delete.click(ask_for_confirmation, view.job, [confirmation, question], **options)
    cancel.click(lambda: gr.update(visible=False), None, confirmation, **options)
    view.job.change(lambda: gr.update(visible=False), None, confirmation, **options)
    confirm.click(delete_job, view.job, [view.job, confirmation], api_name="delete_job")


def _checked_name(name: str | None) -> str:
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
