"""Evaluation of a run's checkpoints, and the choice of one by gap closed.

The choice is the earliest checkpoint whose gap closed is not below the 95 % interval of the largest: a later one is not
measurably more faithful, and each step more changes the class and the prompts' meaning further.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hra_diffusion.errors import ConfigError
from hra_diffusion.evaluation.config import EvaluateConfig
from hra_diffusion.evaluation.subject import Progress, prepare_evaluation
from hra_diffusion.formats.files import check_writable, write_file
from hra_diffusion.formats.folders import component_folders, tokens_beside
from hra_diffusion.metrics import Generations, Report
from hra_diffusion.metrics.bootstrap import Estimate
from hra_diffusion.pipelines import disable_hra, load_hra_weights, unload_hra_weights
from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.outputs.checkpoint import LOG, checkpoints
from hra_diffusion.training.outputs.log import read_log

TABLE = "checkpoints.md"
"""File of the table in the run's folder."""

_COLUMNS = ("gap closed", "background accuracy", "drift, class", "drift, unrelated")


@dataclass(frozen=True, kw_only=True)
class CheckpointChoice:
    """Measured checkpoints of a run, and the chosen one."""

    reports: dict[Path, Report]
    """The report of each checkpoint, oldest first."""
    chosen: Path
    reason: str
    """Why it was chosen, in one sentence."""
    records: Sequence[StepRecord] = ()
    """The run's log."""

    def to_markdown(self) -> str:
        """Return a table with a row for each checkpoint, and the choice."""
        by_step = {f"checkpoint-{record.step}": record for record in self.records}
        header = ["checkpoint", *_COLUMNS, "validation loss", "rotation angles"]
        lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
        for path, report in self.reports.items():
            record = by_step.get(path.name)
            loss = "–" if record is None or record.validation_loss is None else f"{record.validation_loss:.4f}"
            angles = [f"{name} {angle:.1f}°" for name, angle in (record.component_angles if record else {}).items()]
            cells = [str(_estimate(report, name) or "–") for name in _COLUMNS]
            lines.append(f"| {' | '.join([path.name, *cells, loss, ', '.join(angles) or '–'])} |")
        return "\n".join([*lines, "", self.reason, ""])


def evaluate_checkpoints(
    config: EvaluateConfig, *, progress: Progress | None = None, local_files_only: bool = False
) -> CheckpointChoice:
    """Measure each checkpoint of a run with the same prompts and seeds, write the results, and choose one.

    The results of a checkpoint are in its folder, and the table in that of the run.

    Args:
        config: the settings; ``adapter`` is the run's output folder.
        progress: a callback for the numbers of finished images and of all images.
        local_files_only: download no models for the metrics.

    Raises:
        HRAError: there is no checkpoint or only one real image, a setting, a model or an image is unusable, or a folder
            is not writable.
    """
    folder = config.adapter
    paths = checkpoints(folder)
    if not paths:
        raise ConfigError(
            f"--checkpoints needs the output folder of a run with checkpoints, and {folder} has none: name that of a "
            "run, or leave --checkpoints out."
        )
    output = config.output_dir or folder
    check_writable(output)
    source = folder if (folder / "adapter").is_dir() else paths[-1]  # an interrupted run has no final adapter
    evaluation, pipe = prepare_evaluation(replace(config, adapter=source), local_files_only=local_files_only)
    if len(evaluation.references) < 2:
        raise ConfigError(
            "--checkpoints compares gap closed, which needs two real images or more: add some to "
            f"{evaluation.about['reference_dir']}, or name another folder with --reference_dir."
        )
    # learned tokens are in the prompts of the base model, too, as in the evaluation of one adapter
    has_tokens = {path: bool(tokens_beside(component_folders(path))) for path in paths}
    base = Generations(plan=evaluation.plan)
    per_mode = base.num_images // 2
    total, done = per_mode * (len(paths) + (sum(has_tokens.values()) or 1)), 0
    reports: dict[Path, Report] = {}
    for path in paths:
        load_hra_weights(pipe, path)
        if has_tokens[path] or not base.images:
            for count in base.generate_mode("base", pipe, disable_hra):
                _report(progress, done + count, total)
            done += per_mode
        generations = Generations(plan=evaluation.plan, images=dict(base.images))
        for count in generations.generate_mode("adapter", pipe):
            _report(progress, done + count - per_mode, total)
        done += per_mode
        unload_hra_weights(pipe)
        reports[path] = evaluation.report_on(generations, path)
        reports[path].write(output / path.name)
    chosen, reason = choose({path.name: _gap_closed(report) for path, report in reports.items()})
    log = folder / LOG
    choice = CheckpointChoice(
        reports=reports,
        chosen=next(path for path in paths if path.name == chosen),
        reason=reason,
        records=read_log(log) if log.is_file() else (),
    )
    write_file(output / TABLE, lambda path: path.write_text(choice.to_markdown(), encoding="utf-8"))
    return choice


def choose(gaps: dict[str, Estimate]) -> tuple[str, str]:
    """Choose a checkpoint by the gap closed of each, oldest first; return its name and the reason."""
    best = max(gaps, key=lambda name: gaps[name].value)
    low = gaps[best].low
    least = gaps[best].value if low is None else low
    chosen = next((name for name, gap in gaps.items() if gap.value >= least), best)  # a ratio may be below its interval
    if chosen == best:
        earlier = ", and those before it are below its interval" if next(iter(gaps)) != best else ""
        return best, f"Chosen: {best}, which has the largest gap closed, {gaps[best]}{earlier}."
    return chosen, (
        f"Chosen: {chosen}, the earliest whose gap closed, {gaps[chosen].value:.3f}, is within the interval of the "
        f"largest, {gaps[best]} of {best}: later steps are not measurably more faithful, and change the class further."
    )


def _gap_closed(report: Report) -> Estimate:
    estimate = _estimate(report, "gap closed")
    if estimate is None:  # two real images or more are checked before
        raise ConfigError(
            "--checkpoints compares gap closed, and there is no gap: the base model's images are as near to the real "
            "images as these are to each other. Name real images of the subject with --reference_dir."
        )
    return estimate


def _estimate(report: Report, name: str) -> Estimate | None:
    """Return the estimate of the first metric with this prefix for the adapter, or None."""
    estimates = (m.estimate for m in report.measurements if m.mode == "adapter" and m.name.startswith(name))
    return next(estimates, None)


def _report(progress: Progress | None, count: int, total: int) -> None:
    if progress:
        progress(count, total)
