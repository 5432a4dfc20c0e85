"""Endpoints of training jobs: check and estimate a job, start it, list, stop, resume, rename and delete jobs."""

from pathlib import Path
from typing import Any

import gradio as gr

from hra_diffusion.studio.api.endpoints import expose, expose_typed
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.engine.training.job_checkpoints import add_checkpoint, checkpoint_steps
from hra_diffusion.studio.engine.training.job_output import log_tail
from hra_diffusion.studio.engine.training.training_images import check_images
from hra_diffusion.studio.tabs.caption_section import usable_images
from hra_diffusion.studio.tabs.common import named_parameters, strip_folders
from hra_diffusion.studio.tabs.training_fields import FIELDS, TrainingFields, captions_and_crops, job_from_values


def expose_training(session: Session, fields: TrainingFields) -> None:
    """Add the endpoints of training jobs."""

    def check(files: list[str] | None, captions: Any = None) -> list[dict[str, Any]]:
        """Check training images. Returns name, size, problem, caption and crop of each."""
        results = check_images([Path(file) for file in files or []])
        rows = iter(captions_and_crops(captions, [path.name for path, size, _ in results if size]))
        return [
            {"name": path.name, "size": size, "problem": strip_folders(problem)}
            | (dict(zip(("caption", "crop"), next(rows), strict=True)) if size else {})
            for path, size, problem in results
        ]

    def estimate(*values: Any) -> dict[str, str]:
        """Estimate the time and memory of a training job from two steps."""
        return session.estimate(job_from_values(values))

    def train(*values: Any) -> str:
        """Start a training job in a process of its own, or queue it behind another one. Returns the job's name."""
        return session.train(job_from_values(values)).name

    def caption(files: list[str] | None) -> list[str]:
        """Caption images with the studio's captioner. Returns the caption of each."""
        return session.image_captions.captions(usable_images(files))

    expose("caption", caption, [fields.files], gr.JSON(label="captions"))
    expose("check", check, [fields.files, fields.captions], gr.JSON(label="images"))
    expose("estimate", named_parameters(estimate, *FIELDS), fields.components, gr.JSON(label="estimate"))
    expose("train", named_parameters(train, *FIELDS), fields.components, gr.Textbox(label="name"))
    _expose_jobs(session)


def _expose_jobs(session: Session) -> None:
    def jobs() -> list[str]:
        """Return the names of all training jobs, the newest first."""
        return session.jobs.names()

    def job(job: str) -> dict[str, Any]:
        """Return the status of a training job."""
        current = session.job(job)
        return {
            "name": current.name,
            "status": current.status.value,
            "phase": current.phase,
            "step": current.step,
            "steps": current.total_steps,
            "error": current.error and strip_folders(current.error),
            "losses": [record.loss for record in current.records()],
            "metrics": current.metrics_table(),
            "checkpoints": checkpoint_steps(current),
        }

    def stop_job(job: str) -> str:
        """Stop a training job after its current step, or remove it from the queue. Returns its name."""
        session.jobs.stop(job)
        return job

    def resume_job(job: str) -> str:
        """Resume a training job from its last checkpoint. Returns its name."""
        return session.jobs.resume(job).name

    def rename_job(job: str, new_name: str) -> str:
        """Rename a training job that is not running; its adapter keeps its name. Returns the new name."""
        return session.jobs.rename(job, new_name).name

    def delete_job(job: str) -> str:
        """Delete a training job with its images and checkpoints. Its adapter stays in the library. Returns its name."""
        session.jobs.delete(job)
        return job

    def use_checkpoint(job: str, step: int) -> str:
        """Add the checkpoint of a training job after a step to the library. Returns the adapter's name."""
        return add_checkpoint(session.library, session.jobs.get(job), step).name

    def job_log(job: str) -> list[str]:
        """Return the last lines of a training job's output."""
        return [strip_folders(line) for line in log_tail(session.jobs.get(job).folder)]

    for handler in (jobs, job, stop_job, resume_job, rename_job, delete_job, use_checkpoint, job_log):
        expose_typed(handler.__name__, handler)
