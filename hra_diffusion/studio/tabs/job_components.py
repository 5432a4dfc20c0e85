"""The components of the view of a training job."""

from dataclasses import dataclass

import gradio as gr

from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import empty_state
from hra_diffusion.studio.tabs.job_list import job_list
from hra_diffusion.studio.tabs.loss_plot import SMOOTHING

NO_JOB = empty_state("No training job", "Choose images, fill in name and class, and press Train.")
ALL_STEPS = "All steps"
NOT_DISPLAYED = ("", -1, "")


@dataclass(frozen=True, kw_only=True)
class JobView:
    """The components of the view."""

    job: gr.Dropdown
    jobs: gr.HTML
    """The list of all jobs."""
    status: gr.HTML
    stop: gr.Button
    unqueue: gr.Button
    """Removes the job from the queue."""
    resume: gr.Button
    try_it: gr.Button
    """Chooses the job's adapter in Generate."""
    use_settings: gr.Button
    """Fills the form with the settings of the job."""
    change: gr.Button
    """Displays the panel that renames and deletes the job."""
    loss: gr.HTML
    smoothing: gr.Slider
    step: gr.Dropdown
    """The step of the displayed validation images."""
    validation_images: gr.Gallery
    metrics: gr.HTML
    checkpoints: gr.Accordion
    checkpoint: gr.Dropdown
    use_checkpoint: gr.Button
    checkpoint_note: gr.HTML
    log: gr.HTML
    timer: gr.Timer
    """Updates the view."""
    displayed: gr.State
    """Name, step and status of the displayed job: losses and images are sent only when it changes."""
    ended: gr.State
    """Name of the displayed job once it has ended, or of a new adapter; its change event reports new adapters."""


def is_active(session: Session) -> bool:
    """Whether a job is running or queued, so that the view changes."""
    return session.jobs.running() is not None or bool(session.jobs.queue())


def job_components(session: Session) -> JobView:
    """Build the components."""
    running = session.jobs.running()
    job = gr.Dropdown(
        session.jobs.names(),
        value=running and running.name,
        label="Training job",
        allow_custom_value=True,  # gradio checks against the choices at page load, which lack newer jobs
        elem_id="job",
    )
    with gr.Accordion("All training jobs", open=False, elem_id="all-jobs"):
        jobs = job_list(session)
    status = gr.HTML(NO_JOB, elem_id="job-status")
    with gr.Row(elem_classes="tools"):
        buttons = {
            name: gr.Button(text, size="sm", visible=False, elem_id=elem_id)
            for name, text, elem_id in (
                ("try_it", "Try it", "try-job"),
                ("stop", "Stop", "stop-job"),
                ("unqueue", "Remove from the queue", "unqueue-job"),
                ("resume", "Resume", "resume-job"),
                ("use_settings", "Use settings", "clone-job"),
                ("change", "Rename or delete…", "change-job"),
            )
        }
    loss = gr.HTML("", label="loss", elem_id="loss")
    smoothing = gr.Slider(
        0, 0.99, SMOOTHING, step=0.01, label="Smoothing", visible=False, buttons=[], elem_id="smoothing"
    )
    step = gr.Dropdown(
        [ALL_STEPS],
        value=ALL_STEPS,
        label="Validation images of step",
        allow_custom_value=True,
        visible=False,
        elem_id="validation-step",
    )
    gallery = gr.Gallery(
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
    with gr.Accordion("Checkpoints", open=False, visible=False, elem_id="checkpoints") as checkpoints:
        with gr.Row():
            checkpoint = gr.Dropdown([], label="Checkpoint of step", allow_custom_value=True, elem_id="checkpoint")
            use_checkpoint = gr.Button("Use the checkpoint of this step", elem_id="use-checkpoint")
        checkpoint_note = gr.HTML("", label="checkpoint", elem_id="checkpoint-note")
    with gr.Accordion("Log and memory", open=False, elem_id="log-section"):
        log = gr.HTML("", label="log", elem_id="log")
    return JobView(
        job=job,
        jobs=jobs,
        status=status,
        **buttons,
        loss=loss,
        smoothing=smoothing,
        step=step,
        validation_images=gallery,
        metrics=metrics,
        checkpoints=checkpoints,
        checkpoint=checkpoint,
        use_checkpoint=use_checkpoint,
        checkpoint_note=checkpoint_note,
        log=log,
        timer=gr.Timer(1.0, active=is_active(session)),
        displayed=gr.State(NOT_DISPLAYED),
        ended=gr.State(""),
    )
