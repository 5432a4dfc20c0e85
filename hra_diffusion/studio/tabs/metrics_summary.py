"""The final metrics of a training job: a verdict in words, with the table folded below."""

import html

from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.reading import read_json
from hra_diffusion.formats.run_folder import METRICS
from hra_diffusion.studio.engine.training.job import Job

_GOOD, _FAIR = 0.6, 0.25
"""Shares of the closed gap from which the subject is well or partly learned."""
_HIGH_DRIFT = 0.3
"""Drift of the class or of unrelated images from which the advice is to train less."""


def metrics_summary(job: Job) -> str:
    """Return the HTML of a job's metrics; "" before they are measured."""
    table = job.metrics_table()
    if not table:
        return ""
    sentences = "".join(f"<p>{html.escape(text)}</p>" for text in _verdict(job))
    details = f"<details><summary>All metrics</summary>{_table(table)}</details>"
    return f'<section class="metrics">{sentences}{details}</section>'


def _verdict(job: Job) -> list[str]:
    """Return sentences about fidelity and drift; none for files without these metrics."""
    try:
        measures = read_json(job.folder / METRICS)["measures"]
        values = {(str(row["name"]), str(row["mode"])): float(row["value"]) for row in measures}
    except (AdapterFileError, KeyError, TypeError, ValueError):
        return []
    sentences: list[str] = []
    closed = [value for (name, _), value in values.items() if name.startswith("gap closed")]
    if closed:
        share = sum(closed) / len(closed)
        how = "well" if share >= _GOOD else "partly" if share >= _FAIR else "hardly"
        advice = "" if share >= _GOOD else " More steps or more images may help."
        sentences.append(
            f"The subject is {how} learned: {share:.0%} of the gap between the base model and the real images is "
            f"closed.{advice}"
        )
    drifts = [value for (name, _), value in values.items() if name.startswith("drift")]
    if drifts:
        drift = max(drifts)
        text = "Other images have changed a lot" if drift >= _HIGH_DRIFT else "Other images have hardly changed"
        advice = ": fewer steps or more class images may help." if drift >= _HIGH_DRIFT else "."
        sentences.append(f"{text} (drift {drift:.2f}){advice}")
    return sentences


def _table(markdown: str) -> str:
    """Return the HTML of a Markdown file with one table and paragraphs."""
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]
    cells = [row for row in cells if not all(set(cell) <= set(":- ") for cell in row)]
    body = "".join(
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for number, row in enumerate(cells)
        for tag in ("td" if number else "th",)
    )
    lines = [line for line in markdown.splitlines() if line.strip() and not line.startswith(("|", "#"))]
    notes = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    return f"<table>{body}</table>{notes}"
