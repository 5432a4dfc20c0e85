"""loss.png: the loss of each source over the steps, with its running mean as a bold line."""

from collections.abc import Sequence
from itertools import accumulate
from math import isfinite

from PIL import Image, ImageDraw, ImageFont

from hra_diffusion.training.loop.steps import StepRecord

SIZE = (900, 500)
MARGIN = (70, 40, 20, 50)
"""Left, top, right and bottom, in pixels."""
COLORS = ((31, 119, 180), (230, 120, 20), (44, 150, 44), (200, 40, 40), (130, 90, 180))
FAINT = 0.65
"""Lightening of the single steps' line: 0 is the color, 1 is white."""


def loss_curve(records: Sequence[StepRecord]) -> Image.Image:
    """Plot the losses of at least one step."""
    image = Image.new("RGB", SIZE, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    left, top, right, bottom = MARGIN[0], MARGIN[1], SIZE[0] - MARGIN[2], SIZE[1] - MARGIN[3]
    finite = [loss for record in records for loss in record.losses.values() if isfinite(loss)]
    highest = max(finite, default=0.0) or 1.0
    last = records[-1].step

    def point(step: int, loss: float) -> tuple[float, float]:
        return left + (right - left) * step / last, bottom - (bottom - top) * loss / highest

    for part in range(5):
        step, loss = last * part / 4, highest * part / 4
        (x, _), (_, y) = point(round(step), 0), point(0, loss)
        pen.line([(left, y), (right, y)], (225, 225, 225))
        pen.text((left - 8, y), f"{loss:.3g}", "black", font, anchor="rm")
        pen.text((x, bottom + 8), str(round(step)), "black", font, anchor="mt")
    pen.text(((left + right) / 2, SIZE[1] - 12), "step", "black", font, anchor="mb")
    for index, name in enumerate(records[0].losses):
        color = COLORS[index % len(COLORS)]
        losses = [record.losses[name] for record in records]
        faint = tuple(round(part + (255 - part) * FAINT) for part in color)
        for values, shade, width in ((losses, faint, 1), (running_mean(losses), color, 3)):
            steps = zip(records, values, strict=True)
            points = [point(record.step, value) for record, value in steps if isfinite(value)]
            pen.line(points or [(left, bottom)], shade, width)
        pen.text((right - 10, top + 18 * index), name, color, font, anchor="rt")
    pen.text((left, top - 10), "loss", "black", font, anchor="lb")
    return image


def running_mean(values: Sequence[float]) -> list[float]:
    """Return the exponential running mean of values, over about a tenth of them."""
    keep = 1 - 1 / max(2, len(values) / 10)
    sums = accumulate(values, lambda total, value: keep * total + value, initial=0.0)
    weights = accumulate(values, lambda total, _: keep * total + 1, initial=0.0)
    return [total / weight for total, weight in list(zip(sums, weights, strict=True))[1:]]
