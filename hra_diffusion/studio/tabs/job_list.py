"""The list of all training jobs with their states; a click chooses a job."""

from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.training.job import Job, Status

_SCRIPT = (Path(__file__).parents[1] / "job_list.js").read_text(encoding="utf-8")


def job_list(session: Session) -> gr.HTML:
    """Build the list; its value is the name of the chosen job."""
    return gr.HTML(
        None,
        html_template='<div class="job-list"></div>',
        js_on_load=_SCRIPT,
        apply_default_css=False,
        entries=job_entries(session),
        elem_id="job-list",
    )


def job_entries(session: Session) -> list[dict[str, Any]]:
    """Return the content of the list: the running job, the queue in its order, the others, the newest first."""
    jobs, queue = session.jobs.all(), session.jobs.queue()
    places = {name: number for number, name in enumerate(queue)}
    first = {Status.RUNNING: 0, Status.QUEUED: 1}
    jobs.sort(key=lambda job: (first.get(job.status, 2), places.get(job.name, 0)))
    return [
        {"name": job.name, "state": job.status.value, "progress": _progress(job, places.get(job.name))} for job in jobs
    ]


def _progress(job: Job, position: int | None) -> str:
    if position is not None:
        return f"number {position + 1} in the queue"
    return f"{job.step} of {job.total_steps} steps" if job.total_steps else ""
