"""The losses and rotation angles of a training job as SVG line plots in the page's colors, with values on hover."""

import html
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import isfinite

from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.outputs.loss_curve import component_angles, validation_losses

_WIDTH, _HEIGHT, _HALF_HEIGHT = 640, 260, 150
_LEFT, _TOP, _RIGHT, _BOTTOM = 54, 12, 12, 26
_MAX_POINTS = 400
_MAX_COLUMNS = 100
"""Number of the steps whose values are displayed on hover."""
_SOURCES = {"instance": "instance images", "class": "class images"}
SMOOTHING = 0.6
"""Weight of the previous value in the moving average, TensorBoard's default."""

Line = Sequence[tuple[int, float]]
"""Steps with their values."""
Lines = Mapping[str, Line]
"""Lines by name."""


def smooth(values: Sequence[float], weight: float) -> list[float]:
    """Return the exponential moving average as TensorBoard computes it, without the bias of the first values.

    Args:
        values: the values of all steps; those that are not finite are left out of the average.
        weight: weight of the previous average, from 0 to less than 1.
    """
    averages: list[float] = []
    average, count = 0.0, 0
    for value in values:
        if isfinite(value):
            average, count = weight * average + (1 - weight) * value, count + 1
        averages.append(average / (1 - weight**count) if isfinite(value) else value)
    return averages


def loss_plot(records: Sequence[StepRecord], smoothing: float = SMOOTHING, rotation: str = "") -> str:
    """Return the HTML of the losses and their moving averages, the validation loss and the rotation angles.

    Args:
        records: log records; fewer than two give "".
        smoothing: weight of the moving average, from 0 to less than 1.
        rotation: a sentence about the angles, above their folded plot.
    """
    if len(records) < 2:
        return ""
    steps = [record.step for record in records]
    losses: dict[str, Line] = {}
    raw: dict[str, Line] = {}
    for name in records[0].losses:
        values = [record.losses[name] for record in records]
        losses[_SOURCES.get(name, name)] = list(zip(steps, smooth(values, smoothing), strict=True))
        raw[_SOURCES.get(name, name)] = list(zip(steps, values, strict=True))
    if validated := validation_losses(records):
        losses["validation"] = validated
    figures = [_figure("Loss", losses, _HEIGHT, "", raw if smoothing else {})]
    if angles := component_angles(records):
        plot = _figure("Mean rotation angle", angles, _HALF_HEIGHT, "°", {})
        summary = html.escape(rotation or "Mean rotation angle")
        figures.append(f'<details class="rotation"><summary>{summary}</summary>{plot}</details>')
    return "".join(figures)


def _figure(title: str, lines: Lines, height: int, unit: str, raw: Lines) -> str:
    """Return the HTML of lines over the steps, from 0 to their largest finite value; raw lines are faint."""
    first, last = (extreme(step for points in lines.values() for step, _ in points) for extreme in (min, max))
    highest = max((value for line in lines.values() for _, value in line if isfinite(value)), default=0.0) or 1.0

    def position(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - first) / ((last - first) or 1)
        return x, height - _BOTTOM - (height - _TOP - _BOTTOM) * min(value / highest, 1.0)

    parts = _axes(first, last, highest, height, unit, position)
    for number, (name, line) in enumerate(lines.items()):
        if name in raw:
            parts.append(f'<polyline class="line{number % 4} raw" points="{_points(raw[name], position)}"/>')
        parts.append(f'<polyline class="line{number % 4}" points="{_points(line, position)}"/>')
    parts += _columns(lines, height, unit, position)
    legend = "".join(
        f'<span class="line{number % 4}">{html.escape(name)} <b>{line[-1][1]:.3g}{unit}</b></span>'
        for number, (name, line) in enumerate(lines.items())
    )
    return (
        f'<figure class="loss"><figcaption>{title}: {legend}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title} over the steps">{"".join(parts)}</svg>'
        "</figure>"
    )


Position = Callable[[float, float], tuple[float, float]]
"""The place of a step and a value in the plot."""


def _axes(first: int, last: int, highest: float, height: int, unit: str, position: Position) -> list[str]:
    parts: list[str] = []
    for quarter in range(5):
        value = highest * quarter / 4
        _, y = position(0, value)
        parts.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.2g}{unit}</text>')
    for step in sorted({round(first + (last - first) * quarter / 4) for quarter in range(5)}):
        x, _ = position(step, 0)
        anchor = {first: "start", last: "end"}.get(step, "middle")
        parts.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="{anchor}">{step}</text>')
    return parts


def _points(line: Line, position: Position) -> str:
    stride = max(1, len(line) // _MAX_POINTS)
    return " ".join("{:.1f},{:.1f}".format(*position(step, value)) for step, value in line[::stride] if isfinite(value))


def _columns(lines: Lines, height: int, unit: str, position: Position) -> list[str]:
    """Return columns over the plot that display the values of their step on hover."""
    steps = sorted({step for line in lines.values() for step, _ in line})
    steps = [*steps[: -1 : max(1, len(steps) // _MAX_COLUMNS)], steps[-1]]
    places = [position(step, 0)[0] for step in steps]
    borders = [places[0], *((one + other) / 2 for one, other in pairwise(places)), places[-1]]
    columns: list[str] = []
    for number, step in enumerate(steps):
        known = {name: line[: bisect_right(line, step, key=_step)] for name, line in lines.items()}
        values = [f"{html.escape(name)} {line[-1][1]:.3g}{unit}" for name, line in known.items() if line]
        text = " · ".join([f"step {step}", *values])
        left, right, x = borders[number], borders[number + 1], places[number]
        columns.append(
            f'<g class="values"><rect x="{left:.1f}" y="{_TOP}" width="{max(1.0, right - left):.1f}" '
            f'height="{height - _TOP - _BOTTOM}"/><path d="M{x:.1f} {_TOP}V{height - _BOTTOM}"/>'
            f'<text x="{_WIDTH - _RIGHT - 8}" y="{height - _BOTTOM - 8}" text-anchor="end">{text}</text></g>'
        )
    return columns


def _step(point: tuple[int, float]) -> int:
    return point[0]
