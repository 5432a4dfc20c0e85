"""The view of a training job, updated once a second: status, losses, validation images, final metrics and log."""

import html
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.training.job import Job, Status
from hra_diffusion.studio.engine.training.job_checkpoints import checkpoint_steps
from hra_diffusion.studio.engine.training.validation_images import validation_images, validation_steps
from hra_diffusion.studio.tabs.common import format_duration, served_copy, strip_folders
from hra_diffusion.studio.tabs.events import listen
from hra_diffusion.studio.tabs.job_actions import connect_actions, connect_changes, connect_checkpoints
from hra_diffusion.studio.tabs.job_components import (
    ALL_STEPS,
    NO_JOB,
    NOT_DISPLAYED,
    JobView,
    is_active,
    job_components,
)
from hra_diffusion.studio.tabs.job_list import job_entries
from hra_diffusion.studio.tabs.job_log import job_log
from hra_diffusion.studio.tabs.loss_plot import loss_plot
from hra_diffusion.studio.tabs.metrics_summary import metrics_summary
from hra_diffusion.studio.tabs.rotation_summary import rotation_summary

_MAX_VALIDATION_IMAGES = 12
_TITLES = {
    Status.QUEUED: "Queued",
    Status.RUNNING: "Training in progress",
    Status.FINISHED: "Finished: the adapter is in the library",
    Status.STOPPED: "Stopped",
}
_PROBLEMS = {Status.FAILED: "Training failed", Status.UNREADABLE: "This job cannot be read"}


def job_view(session: Session) -> JobView:
    """Build the view."""
    view = job_components(session)
    _connect_updates(session, view)
    _connect_choices(session, view)
    connect_actions(session, view)
    connect_checkpoints(session, view)
    connect_changes(session, view)
    return view


def _connect_updates(session: Session, view: JobView) -> None:
    """Update the view with its timer and when another job is chosen."""
    buttons = [view.stop, view.unqueue, view.resume, view.try_it, view.use_settings, view.change]
    conditional = [*buttons, view.smoothing, view.step, view.validation_images, view.checkpoints]
    outputs = [view.jobs, view.status, *conditional, view.loss, view.metrics, view.checkpoint, view.log, view.timer]

    def update(name: str | None, displayed: tuple[str, int, str], smoothing: float, step: str | None) -> Any:
        shared = {view.jobs: gr.update(entries=job_entries(session)), view.timer: gr.Timer(active=is_active(session))}
        if not name:
            hidden = dict.fromkeys(conditional, gr.update(visible=False))
            empty = {view.status: NO_JOB, view.loss: "", view.metrics: "", view.log: "", view.ended: ""}
            return shared | hidden | empty | {view.displayed: NOT_DISPLAYED}
        job = session.job(name)
        changes: dict[Any, Any] = {
            view.status: _status(job, session.jobs.queue()),
            view.stop: gr.update(visible=job.status is Status.RUNNING),
            view.unqueue: gr.update(visible=job.status is Status.QUEUED),
            view.resume: gr.update(visible=job.resumable),
            view.try_it: gr.update(visible=job.status is Status.FINISHED),
            view.use_settings: gr.update(visible=job.status is not Status.UNREADABLE),
            view.change: gr.update(visible=job.status is not Status.RUNNING),
            view.metrics: metrics_summary(job),
            view.log: job_log(job),
            view.ended: job.name if job.status not in (Status.RUNNING, Status.QUEUED) else "",
        }
        current = (job.name, job.step, job.status.value)
        if current != tuple(displayed):
            chosen = step if displayed[0] == job.name else ALL_STEPS
            changes |= _results(session, view, job, smoothing, chosen) | {view.displayed: current}
        return shared | changes

    for event in (view.timer.tick, view.job.change):
        inputs = [view.job, view.displayed, view.smoothing, view.step]
        listen(event, update, inputs, [*outputs, view.displayed, view.ended])


def _results(session: Session, view: JobView, job: Job, smoothing: float, step: str | None) -> dict[Any, Any]:
    """Return the updates of a job's plots, validation images and checkpoints."""
    plot, steps, saved = _plots(job, smoothing), validation_steps(job), checkpoint_steps(job)
    choices = [ALL_STEPS, *map(str, steps)]
    return {
        view.loss: plot,
        view.smoothing: gr.update(visible=bool(plot)),
        view.step: gr.update(choices=choices, value=step, visible=len(steps) > 1),
        view.validation_images: _gallery(session, job, step),
        view.checkpoints: gr.update(visible=bool(saved)),
        view.checkpoint: gr.update(choices=[str(number) for number in saved], value=str(saved[0]) if saved else None),
    }


def _plots(job: Job, smoothing: float) -> str:
    """Return the HTML of a job's losses and rotation angles."""
    records = job.records()
    return loss_plot(records, smoothing, rotation_summary(job, records))


def _connect_choices(session: Session, view: JobView) -> None:
    """Connect the list of jobs, the smoothing, and the step of the validation images."""

    def smooth_again(name: str | None, smoothing: float) -> str:
        return _plots(session.jobs.get(name), smoothing) if name else ""

    def show_step(name: str | None, step: str | None) -> Any:
        return _gallery(session, session.jobs.get(name), step) if name else gr.skip()

    def choose(name: str | None) -> Any:
        return gr.update(choices=session.jobs.names(), value=name) if name else gr.skip()

    listen(view.smoothing.release, smooth_again, [view.job, view.smoothing], view.loss)
    listen(view.step.input, show_step, [view.job, view.step], view.validation_images)
    listen(view.jobs.change, choose, view.jobs, view.job)


def _status(job: Job, queue: list[str]) -> str:
    """Return the HTML of a job's status."""
    if job.status in _PROBLEMS:
        error = html.escape(strip_folders(job.error or ""))
        return f'<div class="status failed" role="alert"><b>{_PROBLEMS[job.status]}</b><p>{error}</p></div>'
    left = f" · {format_duration(job.seconds_left)} left" if job.seconds_left else ""
    running = job.status is Status.RUNNING
    text = html.escape(f"{job.phase}{left}" if running else f"{job.step} of {job.total_steps} steps")
    if job.name in queue:
        position = queue.index(job.name)
        text = f"It starts after the running job{f' and {position} others of the queue' if position else ''}."
    return (
        f'<div class="status {job.status.value}" role="status"><b>{_TITLES[job.status]}</b><p>{text}</p>'
        f'<progress max="{max(1, job.total_steps)}" value="{job.step}" aria-label="{text}"></progress></div>'
    )


def _gallery(session: Session, job: Job, step: str | None) -> Any:
    """Return the validation images of a step, or the newest ones, with their prompts as an update of the gallery."""
    number = int(step) if step and step.isdecimal() else None
    images = validation_images(job, number)
    displayed = images if number is not None else images[:_MAX_VALIDATION_IMAGES]
    return gr.update(
        value=[(served_copy(session, image.path), image.caption) for image in displayed], visible=bool(displayed)
    )
