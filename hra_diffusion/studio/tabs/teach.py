"""Teach: pictures in, a subject out. The lesson runs in a process of its own; this tab looks at it, once a second."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import pandas as pd

from hra_diffusion.errors import ConfigError
from hra_diffusion.studio.lesson import PRESETS, Lesson, Sitting, examine, with_effort
from hra_diffusion.studio.runs import Run, Status
from hra_diffusion.studio.session import Session
from hra_diffusion.studio.tabs.common import data_url, empty, in_words, named, note, served, shown
from hra_diffusion.studio.tabs.generate import Settings
from hra_diffusion.studio.tabs.picker import entries
from hra_diffusion.training.loss_curve import running_mean

_COLUMNS = ["picture", "caption", "crop"]
_NO_PICTURES = empty("Four to eight pictures", "One subject, different views, backgrounds and light.")
_NO_RUN = empty("Nothing is being taught", "Choose pictures, say what they show, and press Teach.")
_CAPTIONS = (
    "Caption pictures that show more than the subject. Crops are whole, middle, start, end, or x, y, width, height."
)
_POINTS = 400
_SAMPLES = 12


def build(session: Session, settings: Settings, library: gr.HTML) -> None:
    """Put the tab together."""
    going = session.runs.running()
    look_like = "a 3d render of" if session.embedded else "a photo of"
    with gr.Row(elem_classes="split"):
        with gr.Column(scale=6, min_width=320, elem_classes="side"):
            files = gr.File(
                label="Pictures of the subject",
                file_count="multiple",
                file_types=["image"],
                height=130,
                elem_id="photos",
            )
            checked = gr.HTML(_NO_PICTURES, label="checked", elem_id="checked")
            table = gr.Dataframe(
                headers=_COLUMNS,
                datatype="str",
                type="array",
                column_count=(3, "fixed"),
                interactive=True,
                wrap=True,
                visible=False,
                label="Captions and crops",
                elem_id="captions",
            )
            gr.HTML(note(_CAPTIONS))
            with gr.Group(elem_classes="panel"):
                with gr.Row():
                    name = gr.Textbox(label="Name of the adapter", elem_id="run-name", placeholder="my dog")
                    subject = gr.Textbox(label="What it is", elem_id="subject", placeholder="dog")
                with gr.Row():
                    token = gr.Textbox("sks", label="Rare word for it", elem_id="token")
                    looks_like = gr.Textbox(look_like, label="What the pictures are", elem_id="looks-like")
            preset = gr.Radio(
                _presets(session),
                value="Usual",
                label="Effort",
                elem_id="preset",
            )
            with gr.Accordion("More", open=False, elem_id="effort"):
                with gr.Row():
                    steps = gr.Number(None, label="Steps", precision=0, minimum=1, elem_id="teach-steps")
                    rank = gr.Number(None, label="Rank", precision=0, minimum=2, step=2, elem_id="teach-rank")
                with gr.Row():
                    class_pictures = gr.Number(None, label="Class pictures", precision=0, elem_id="class-pictures")
                    looks = gr.Number(None, label="Looks on the way", precision=0, elem_id="looks")
                    preview_steps = gr.Number(None, label="Steps of a look", precision=0, elem_id="preview-steps")
                gr.HTML(note("What is empty here is the preset's."))
            with gr.Row(elem_classes="actions"):
                teach = gr.Button("Teach", variant="primary", elem_id="teach", scale=2)
                measure = gr.Button("What will it cost?", elem_id="measure", scale=2)
            cost = gr.HTML("", label="cost", elem_id="cost")
        with gr.Column(scale=6, min_width=320, elem_classes="canvas"):
            chosen = gr.Dropdown(_names(session), value=going and going.name, label="Run", elem_id="run")
            status = gr.HTML(_NO_RUN, elem_id="run-status")
            with gr.Row(elem_classes="tools"):
                stop = gr.Button("Stop", size="sm", visible=False, elem_id="stop-run")
                resume = gr.Button("Go on", size="sm", visible=False, elem_id="resume-run")
            curve = gr.LinePlot(
                x="step", y="loss", color="of", height=300, visible=False, label="Loss", elem_id="loss", x_title="step"
            )
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
    def examine_them(files: list[str] | None) -> Any:
        """Look at pictures: what is wrong with each, as HTML, and a table for captions and crops."""
        found = examine([Path(file) for file in files or []])
        rows = [[path.name, "", "whole"] for path, size, _ in found if size]
        return _report(found), gr.update(value=rows, visible=bool(rows))

    def start(*values: Any) -> Any:
        """Teach a subject in a process of its own; returns the run's name."""
        run = session.teach(_lesson(values))
        return gr.update(choices=_names(session), value=run.name), gr.Timer(active=True)

    def estimate(*values: Any) -> str:
        """Measure in two steps what teaching would cost in time and memory."""
        told = session.estimate(_lesson(values))
        rows = "".join(f"<dt>{key}</dt><dd>{html.escape(told[key])}</dd>" for key in ("time", "memory") if key in told)
        return f'<dl class="cost">{rows}</dl>'

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
            "error": found.error,
            "losses": [record.loss for record in found.records()],
            "metrics": found.measured(),
        }

    @shown
    def look(name: str | None, before: tuple[str, int, str]) -> list[Any]:
        if not name:
            return [_NO_RUN, *[gr.update(visible=False)] * 4, "", gr.Timer(active=False), before, ""]
        run = session.look(name)
        now = (run.name, run.done, run.status.value)
        running = run.status is Status.RUNNING
        fresh = now != tuple(before)
        return [
            _status(run),
            gr.update(visible=running),
            gr.update(visible=run.resumable or run.status is Status.STOPPED),
            _curve(run) if fresh else gr.skip(),
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

    def found_again() -> Any:
        going = session.runs.running()
        newest = going.name if going else next(iter(_names(session)), None)
        said = gr.update(choices=_presets(session))
        return gr.update(choices=_names(session), value=newest), gr.Timer(active=going is not None), *cards(), said

    def cards() -> list[Any]:
        return [gr.update(entries=entries(session))] * 2

    def runs() -> list[str]:
        """Names of all runs, the newest first."""
        return _names(session)

    teaching = [
        files,
        table,
        name,
        subject,
        token,
        looks_like,
        preset,
        steps,
        rank,
        class_pictures,
        looks,
        preview_steps,
    ]
    seen = [status, stop, resume, curve, samples, measured, timer, shape, ended]
    files.change(examine_them, files, [checked, table], api_name="examine")
    teach.click(named(start, *_TEACHING), teaching, [chosen, timer], api_name="teach").success(
        look, [chosen, shape], seen, show_progress="hidden", api_visibility="private"
    )
    measure.click(named(estimate, *_TEACHING), teaching, cost, api_name="estimate").success(
        lambda: gr.update(choices=_presets(session)), None, preset, api_visibility="private", show_progress="hidden"
    )
    for event in (timer.tick, chosen.change):
        event(look, [chosen, shape], seen, show_progress="hidden", api_visibility="private")
    stop.click(stop_run, chosen, None, api_name="stop_run")
    resume.click(resume_run, chosen, timer, api_name="resume_run")
    gr.api(run_status, api_name="run")
    gr.api(runs, api_name="runs")
    both = [settings.picker, library]
    ended.change(cards, None, both, api_visibility="private", show_progress="hidden")
    gr.on(None, found_again, None, [chosen, timer, *both, preset], api_visibility="private", show_progress="hidden")


_TEACHING = (
    "files",
    "captions",
    "name",
    "subject",
    "token",
    "looks_like",
    "preset",
    "steps",
    "rank",
    "class_pictures",
    "looks",
    "preview_steps",
)


def _lesson(values: Sequence[Any]) -> Lesson:
    """Make the lesson that the tab's values, and behind them the asker, say; raises ConfigError."""
    said = dict(zip(_TEACHING, values, strict=False))
    if said["preset"] not in PRESETS:
        raise ConfigError(f"There is no effort {str(said['preset'])[:80]!r}; known are: {', '.join(PRESETS)}.")
    names = ("steps", "rank", "class_pictures", "looks", "preview_steps")
    try:
        numbers = {name: None if said[name] is None else int(said[name]) for name in names}
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{', '.join(names)} must be whole numbers.") from None
    table = said["captions"]
    rows = table.get("data", []) if isinstance(table, dict) else table or []
    words = {str(row[0]): [str(cell or "") for cell in row[1:3]] for row in rows if len(row) >= len(_COLUMNS)}
    sittings = [
        Sitting(file=path, caption=words.get(path.name, ["", ""])[0], crop=words.get(path.name, ["", "whole"])[1])
        for path, size, _ in examine([Path(file) for file in said["files"] or []])
        if size
    ]
    return Lesson(
        name=str(said["name"] or "").strip(),
        sittings=tuple(sittings),
        token=str(said["token"] or ""),
        subject=str(said["subject"] or ""),
        looks_like=str(said["looks_like"] or ""),
        effort=with_effort(PRESETS[said["preset"]], **numbers),
    )


def _known(name: str | None) -> str:
    if not name or not isinstance(name, str):
        raise ConfigError("Choose a run first.")
    return name


def _presets(session: Session) -> list[tuple[str, str]]:
    """The presets, and what each costs once it was measured for the base."""
    cost = session.costs.of(session.model.base.source)
    return [
        (
            f"{name} · {effort.steps} steps"
            + (f" · {in_words(cost.seconds(effort))}, {cost.memory:.1f} GB" if cost else ""),
            name,
        )
        for name, effort in PRESETS.items()
    ]


def _names(session: Session) -> list[str]:
    return [run.name for run in session.runs.all()]


def _report(found: list[tuple[Path, tuple[int, int] | None, str]]) -> str:
    """Thumbnails of what can be used, and what is wrong with the rest, by name."""
    if not found:
        return _NO_PICTURES
    good = "".join(
        f'<figure><img src="{data_url(path, 160)}" alt="{html.escape(path.name)}">'
        f"<figcaption>{size[0]}×{size[1]}</figcaption></figure>"
        for path, size, _ in found
        if size
    )
    bad = "".join(note(problem, "warning") for _, size, problem in found if not size)
    return f'<div class="strip">{good}</div>{bad}'


def _status(run: Run) -> str:
    if run.status is Status.FAILED:
        return (
            f'<div class="status failed" role="alert"><b>It did not work</b><p>{html.escape(run.error or "")}</p></div>'
        )
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


def _curve(run: Run) -> Any:
    """The losses of all sources, smoothed, thinned to what a plot can show."""
    records = run.records()
    if len(records) < 2:
        return gr.update(visible=False)
    every = max(1, len(records) // _POINTS)
    frames = [
        pd.DataFrame(
            {
                "step": [record.step for record in records][::every],
                "loss": running_mean([record.losses[source] for record in records])[::every],
                "of": "its pictures" if source == "instance" else "its class",
            }
        )
        for source in records[0].losses
    ]
    return gr.update(value=pd.concat(frames), visible=True)


def _samples(session: Session, run: Run) -> Any:
    pictures = [(served(session, path), f"after {step} steps") for step, path in run.samples()[:_SAMPLES]]
    return gr.update(value=pictures, visible=bool(pictures))
