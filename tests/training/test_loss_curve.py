"""loss.png: one line per source, for any number of steps and any losses."""

import math

import numpy as np
import pytest

from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.outputs.loss_curve import COLORS, loss_curve, running_mean


def records(*losses: dict[str, float]) -> list[StepRecord]:
    return [
        StepRecord(step=step, loss=sum(by_source.values()), losses=by_source, gradient_norm=0.0, learning_rates={})
        for step, by_source in enumerate(losses, 1)
    ]


def rows_of(sheet, color) -> np.ndarray:
    """Return the mean height of a color in the columns left of the legend, in rows from the top."""
    is_color = (np.asarray(sheet)[:, :700] == color).all(-1)
    return np.array([column.nonzero()[0].mean() for column in is_color.T if column.any()])


def test_lower_losses_are_plotted_lower():
    sheet = loss_curve(records(*({"instance": 1 / step, "class": 2 / step} for step in range(1, 50))))
    instance, of_class = rows_of(sheet, COLORS[0]), rows_of(sheet, COLORS[1])
    assert instance[0] < instance[len(instance) // 2] < instance[-1]
    assert of_class.mean() < instance.mean()


@pytest.mark.parametrize("losses", [[0.5], [0.0, 0.0], [1.0, math.nan, 2.0], [math.nan], [math.inf, 1.0]])
def test_any_losses_can_be_plotted(losses):
    assert loss_curve(records(*({"instance": loss} for loss in losses))).size == (900, 500)


def test_the_running_mean_of_a_constant_is_the_constant():
    assert running_mean([0.3] * 40) == pytest.approx([0.3] * 40)
    assert running_mean([1.0, 3.0])[0] == 1.0
