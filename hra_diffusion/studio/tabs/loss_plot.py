"""The losses of a training job as an SVG line plot in the page's colors."""

import html
from collections.abc import Sequence
from math import isfinite

from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.outputs.loss_curve import running_mean

_WIDTH, _HEIGHT = 640, 260
_LEFT, _TOP, _RIGHT, _BOTTOM = 54, 12, 12, 26
_MAX_POINTS = 400
_SOURCES = {"instance": "instance images", "class": "class images"}


def loss_plot(records: Sequence[StepRecord]) -> str:
    """Return the HTML of the smoothed loss of each source over the steps; "" for fewer than two steps."""
    if len(records) < 2:
        return ""
    stride = max(1, len(records) // _MAX_POINTS)
    lines = {name: running_mean([record.losses[name] for record in records])[::stride] for name in records[0].losses}
    steps = [record.step for record in records][::stride]
    highest = max((loss for line in lines.values() for loss in line if isfinite(loss)), default=0.0) or 1.0

    def position(step: float, loss: float) -> tuple[float, float]:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - steps[0]) / ((steps[-1] - steps[0]) or 1)
        return x, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * loss / highest

    parts: list[str] = []
    for quarter in range(5):
        loss = highest * quarter / 4
        _, y = position(0, loss)
        parts.append(f'<path class="rule" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{loss:.2g}</text>')
    for step in sorted({round(steps[0] + (steps[-1] - steps[0]) * quarter / 4) for quarter in range(5)}):
        x, _ = position(step, 0)
        anchor = {steps[0]: "start", steps[-1]: "end"}.get(step, "middle")
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{step}</text>')
    for number, line in enumerate(lines.values()):
        points = " ".join(
            "{:.1f},{:.1f}".format(*position(step, loss))
            for step, loss in zip(steps, line, strict=True)
            if isfinite(loss)
        )
        parts.append(f'<polyline class="line{number % 4}" points="{points}"/>')
    legend = "".join(
        f'<span class="line{number % 4}">{html.escape(_SOURCES.get(name, name))} <b>{line[-1]:.3g}</b></span>'
        for number, (name, line) in enumerate(lines.items())
    )
    return (
        f'<figure class="loss"><figcaption>Loss: {legend}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Loss over the steps">{"".join(parts)}</svg>'
        "</figure>"
    )
