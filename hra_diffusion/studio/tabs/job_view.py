"""A run as it goes, looked at once a second: its losses, samples on the way, and the numbers at the end."""

import html
from dataclasses import dataclass
from typing import Any

import gradio as gr

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.engine.jobs import Run, Status
from hra_diffusion.studio.engine.session import Session
from hra_diffusion.studio.tabs.common import empty, in_words, served, shown, without_folders
from hra_diffusion.studio.tabs.loss_plot import loss_plot

_NO_RUN = empty("Nothing is being taught", "Choose images, say what they show, and press Teach.")
_SAMPLES = 12


@dataclass(frozen=True)
class JobView:
    """The components that show a run."""

    chosen: gr.Dropdown
    timer: gr.Timer
    """Looks at the run again."""
    ended: gr.State
    """The name of a run that has ended; changes when one does."""


def job_view(session: Session) -> JobView:
    """Put the view together."""
    going = session.runs.running()
    chosen = gr.Dropdown(
        names(session),
        value=going and going.name,
        label="Run",
        allow_custom_value=True,  # gradio knows each client's choices alone: another's new run is none of them
        elem_id="run",
    )
    status = gr.HTML(_NO_RUN, elem_id="run-status")
    with gr.Row(elem_classes="tools"):
        stop = gr.Button("Stop", size="sm", visible=False, elem_id="stop-run")
        resume = gr.Button("Go on", size="sm", visible=False, elem_id="resume-run")
    curve = gr.HTML("", label="loss", elem_id="loss")
    samples = gr.Gallery(
        label="Samples on the way",
        show_label=False,
        columns=3,
        height="auto",
        object_fit="contain",
        format="png",
        visible=False,
        interactive=False,
        elem_id="samples",
    )
    measured = gr.Markdown("", elem_id="measured")
    timer = gr.Timer(1.0, active=going is not None)
    shape, ended = gr.State(("", -1, "")), gr.State("")

    @shown
    def run_status(run: str | None) -> dict[str, Any]:
        """How a run stands."""
        found = session.look(_known(run))
        return {
            "name": found.name,
            "status": found.status.value,
            "phase": found.phase,
            "step": found.done,
            "steps": found.total,
            "error": found.error and without_folders(found.error),
            "losses": [record.loss for record in found.records()],
            "metrics": found.measured(),
        }

    @shown
    def look(name: str | None, before: tuple[str, int, str]) -> list[Any]:
        if not name:
            hidden = gr.update(visible=False)
            return [_NO_RUN, *[hidden] * 2, "", hidden, "", gr.Timer(active=False), before, ""]
        run = session.look(name)
        now = (run.name, run.done, run.status.value)
        running = run.status is Status.RUNNING
        fresh = now != tuple(before)
        return [
            _status(run),
            gr.update(visible=running),
            gr.update(visible=run.resumable),
            loss_plot(run.records()) if fresh else gr.skip(),
            _samples(session, run) if fresh else gr.skip(),
            run.measured() or "",
            gr.Timer(active=running),
            now,
            "" if running else run.name,
        ]

    @shown
    def stop_run(run: str | None) -> None:
        """Stop a run after this step; it can go on later."""
        session.runs.stop(_known(run))

    @shown
    def resume_run(run: str | None) -> Any:
        """Let a run go on from its last checkpoint."""
        session.runs.resume(_known(run))
        return gr.Timer(active=True)

    def runs() -> list[str]:
        """Names of all runs, the newest first."""
        return names(session)

    seen = [status, stop, resume, curve, samples, measured, timer, shape, ended]
    for event in (timer.tick, chosen.change):
        event(look, [chosen, shape], seen, show_progress="hidden", api_visibility="private")
    stop.click(stop_run, chosen, None, api_name="stop_run")
    resume.click(resume_run, chosen, timer, api_name="resume_run")
    gr.api(run_status, api_name="run")
    gr.api(runs, api_name="runs")
    return JobView(chosen, timer, ended)


def names(session: Session) -> list[str]:
    """Names of all runs, the newest first."""
    return [run.name for run in session.runs.all()]


def _known(name: str | None) -> str:
    if not name or not isinstance(name, str):
        raise ConfigError("Choose a run first.")
    return name


def _status(run: Run) -> str:
    if run.status is Status.FAILED:
        why = html.escape(without_folders(run.error or ""))
        return f'<div class="status failed" role="alert"><b>It did not work</b><p>{why}</p></div>'
    left = f" · {in_words(run.seconds_left)} left" if run.seconds_left else ""
    title = {
        Status.RUNNING: "Learning",
        Status.FINISHED: "Learned: it is in the library",
        Status.STOPPED: "Stopped",
    }[run.status]
    said = f"{run.phase}{left}" if run.status is Status.RUNNING else f"{run.done} of {run.total} steps"
    return (
        f'<div class="status {run.status.value}" role="status"><b>{title}</b><p>{html.escape(said)}</p>'
        f'<progress max="{max(1, run.total)}" value="{run.done}" aria-label="{html.escape(said)}"></progress></div>'
    )


def _samples(session: Session, run: Run) -> Any:
    images = [(served(session, path), f"after {step} steps") for step, path in run.samples()[:_SAMPLES]]
    return gr.update(value=images, visible=bool(images))
