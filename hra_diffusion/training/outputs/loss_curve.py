"""loss.png: the losses over the steps, and below them the rotation angles.

The loss of each source has its running mean as a bold line; the validation loss is as it was measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import isfinite

from PIL import Image, ImageDraw, ImageFont

from hra_diffusion.training.loop.steps import StepRecord

SIZE = (900, 500)
"""Of the panel of losses, in pixels; that of angles below is as wide and half as high."""
MARGIN = (70, 40, 20, 50)
"""Left, top, right and bottom, in pixels."""
COLORS = ((31, 119, 180), (230, 120, 20), (44, 150, 44), (200, 40, 40), (130, 90, 180))
FAINT = 0.65
"""Lightening of the single steps' line: 0 is the color, 1 is white."""

Points = Sequence[tuple[int, float]]
"""Steps with their values."""


def loss_curve(records: Sequence[StepRecord]) -> Image.Image:
    """Plot the losses, and the rotation angles if there are any, of at least one step."""
    sources = {name: [(record.step, record.losses[name]) for record in records] for name in records[0].losses}
    lines: list[_Line] = []
    for index, (name, points) in enumerate(sources.items()):
        color = COLORS[index % len(COLORS)]
        smooth = running_mean([loss for _, loss in points])
        lines.append(_Line(points, _lightened(color), 1))
        lines.append(_Line([(step, loss) for (step, _), loss in zip(points, smooth, strict=True)], color, 3, name))
    if validated := validation_losses(records):
        lines.append(_Line(validated, COLORS[len(sources) % len(COLORS)], 3, "validation"))
    last = records[-1].step
    panels = [_panel("loss", lines, last, SIZE)]
    if angles := component_angles(records):
        angle_lines = [
            _Line(points, COLORS[index % len(COLORS)], 3, name) for index, (name, points) in enumerate(angles.items())
        ]
        panels.append(_panel("mean rotation angle in degrees", angle_lines, last, (SIZE[0], SIZE[1] // 2)))
    image = Image.new("RGB", (SIZE[0], sum(panel.height for panel in panels)), "white")
    for index, panel in enumerate(panels):
        image.paste(panel, (0, sum(above.height for above in panels[:index])))
    return image


def validation_losses(records: Sequence[StepRecord]) -> list[tuple[int, float]]:
    """Return the steps with a validation loss, each with it."""
    return [(record.step, record.validation_loss) for record in records if record.validation_loss is not None]


def component_angles(records: Sequence[StepRecord]) -> Mapping[str, list[tuple[int, float]]]:
    """Return the mean rotation angle of each component over the steps, without those of its groups of layers."""
    names = dict.fromkeys(name for record in records for name in record.component_angles)
    return {name: [(record.step, record.angles[name]) for record in records if name in record.angles] for name in names}


@dataclass(frozen=True)
class _Line:
    """A line of a panel; one without a name is not in the legend."""

    points: Points
    color: tuple[int, ...]
    width: int
    name: str | None = None


def _panel(title: str, lines: Sequence[_Line], last: int, size: tuple[int, int]) -> Image.Image:
    """Plot lines over the steps 0 to ``last``, from 0 to their largest finite value."""
    image = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    left, top, right, bottom = MARGIN[0], MARGIN[1], size[0] - MARGIN[2], size[1] - MARGIN[3]
    highest = max((value for line in lines for _, value in line.points if isfinite(value)), default=0.0) or 1.0

    def position(step: int, value: float) -> tuple[float, float]:
        return left + (right - left) * step / last, bottom - (bottom - top) * value / highest

    for part in range(5):
        step, value = last * part / 4, highest * part / 4
        (x, _), (_, y) = position(round(step), 0), position(0, value)
        pen.line([(left, y), (right, y)], (225, 225, 225))
        pen.text((left - 8, y), f"{value:.3g}", "black", font, anchor="rm")
        pen.text((x, bottom + 8), str(round(step)), "black", font, anchor="mt")
    pen.text(((left + right) / 2, size[1] - 12), "step", "black", font, anchor="mb")
    for line in lines:
        points = [position(step, value) for step, value in line.points if isfinite(value)]
        pen.line(points or [(left, bottom)], line.color, line.width)
    for row, line in enumerate(line for line in lines if line.name):
        pen.text((right - 10, top + 18 * row), line.name or "", line.color, font, anchor="rt")
    pen.text((left, top - 10), title, "black", font, anchor="lb")
    return image


def _lightened(color: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(round(part + (255 - part) * FAINT) for part in color)


def running_mean(values: Sequence[float]) -> list[float]:
    """Return the exponential running mean of values, over about a tenth of them."""
    keep = 1 - 1 / max(2, len(values) / 10)
    sums = accumulate(values, lambda total, value: keep * total + value, initial=0.0)
    weights = accumulate(values, lambda total, _: keep * total + 1, initial=0.0)
    return [total / weight for total, weight in list(zip(sums, weights, strict=True))[1:]]
