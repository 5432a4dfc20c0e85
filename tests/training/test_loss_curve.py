"""loss.png: a line a source, drawn for one step as for many, and whatever the losses are."""

import math

import numpy as np
import pytest

from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.outputs.loss_curve import COLORS, loss_curve, running_mean


def records(*losses: dict[str, float]) -> list[StepRecord]:
    return [
        StepRecord(step=step, loss=sum(each.values()), losses=each, gradient_norm=0.0, learning_rates={})
        for step, each in enumerate(losses, 1)
    ]


def rows_of(sheet, color) -> np.ndarray:
    """Mean height, in rows from the top, at which each column shows a color; left of the source's name."""
    shown = (np.asarray(sheet)[:, :700] == color).all(-1)
    return np.array([column.nonzero()[0].mean() for column in shown.T if column.any()])


def test_a_falling_loss_is_a_falling_line_and_a_higher_one_stands_higher():
    sheet = loss_curve(records(*({"instance": 1 / step, "class": 2 / step} for step in range(1, 50))))
    instance, of_class = rows_of(sheet, COLORS[0]), rows_of(sheet, COLORS[1])
    assert instance[0] < instance[len(instance) // 2] < instance[-1]
    assert of_class.mean() < instance.mean()


@pytest.mark.parametrize("losses", [[0.5], [0.0, 0.0], [1.0, math.nan, 2.0], [math.nan], [math.inf, 1.0]])
def test_any_losses_can_be_drawn(losses):
    assert loss_curve(records(*({"instance": loss} for loss in losses))).size == (900, 500)


def test_a_running_mean_of_one_value_is_that_value():
    assert running_mean([0.3] * 40) == pytest.approx([0.3] * 40)
    assert running_mean([1.0, 3.0])[0] == 1.0
