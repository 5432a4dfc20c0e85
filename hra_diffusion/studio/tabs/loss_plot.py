"""The losses and rotation angles of a training job as SVG line plots in the page's colors."""

import html
from collections.abc import Mapping, Sequence
from math import isfinite

from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.outputs.loss_curve import component_angles, running_mean, validation_losses

_WIDTH, _HEIGHT, _HALF_HEIGHT = 640, 260, 150
_LEFT, _TOP, _RIGHT, _BOTTOM = 54, 12, 12, 26
_MAX_POINTS = 400
_SOURCES = {"instance": "instance images", "class": "class images"}

Lines = Mapping[str, Sequence[tuple[int, float]]]
"""Steps with their values, by the line's name."""


def loss_plot(records: Sequence[StepRecord]) -> str:
    """Return the HTML of the smoothed losses, the validation loss and the rotation angles; "" below two steps."""
    if len(records) < 2:
        return ""
    steps = [record.step for record in records]
    losses: dict[str, Sequence[tuple[int, float]]] = {}
    for name in records[0].losses:
        smooth = running_mean([record.losses[name] for record in records])
        losses[_SOURCES.get(name, name)] = list(zip(steps, smooth, strict=True))
    if validated := validation_losses(records):
        losses["validation"] = validated
    figures = [_figure("Loss", losses, _HEIGHT, "")]
    if angles := component_angles(records):
        figures.append(_figure("Mean rotation angle", angles, _HALF_HEIGHT, "°"))
    return "".join(figures)


def _figure(title: str, lines: Lines, height: int, unit: str) -> str:
    """Return the HTML of lines over the steps, from 0 to their largest finite value."""
    first, last = (extreme(step for points in lines.values() for step, _ in points) for extreme in (min, max))
    highest = max((value for points in lines.values() for _, value in points if isfinite(value)), default=0.0) or 1.0

    def position(step: float, value: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - first) / ((last - first) or 1)
        return x, height - _BOTTOM - (height - _TOP - _BOTTOM) * value / highest

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
    for number, line in enumerate(lines.values()):
        stride = max(1, len(line) // _MAX_POINTS)
        points = " ".join(
            "{:.1f},{:.1f}".format(*position(step, value)) for step, value in line[::stride] if isfinite(value)
        )
        parts.append(f'<polyline class="line{number % 4}" points="{points}"/>')
    legend = "".join(
        f'<span class="line{number % 4}">{html.escape(name)} <b>{line[-1][1]:.3g}{unit}</b></span>'
        for number, (name, line) in enumerate(lines.items())
    )
    return (
        f'<figure class="loss"><figcaption>{title}: {legend}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title} over the steps">{"".join(parts)}</svg>'
        "</figure>"
    )
