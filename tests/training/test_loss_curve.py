"""loss.png: one line per source, for any number of steps and any losses."""

import math
from dataclasses import replace

import numpy as np
import pytest

from hra_diffusion.studio.tabs.loss_plot import loss_plot, smooth
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


def test_angles_have_a_panel_of_their_own_and_the_validation_loss_is_a_line_of_the_losses():
    plain = records(*({"instance": 0.5} for _ in range(50)))
    measured = [
        replace(
            record,
            angles={"unet": float(record.step), "unet.mid_block": 90.0},
            validation_loss=0.25 if record.step % 10 == 0 else None,
        )
        for record in plain
    ]
    assert loss_curve(plain).size == (900, 500)
    sheet = loss_curve(measured)
    assert sheet.size == (900, 750)
    losses, angles = sheet.crop((0, 0, 900, 500)), sheet.crop((0, 500, 900, 750))
    assert np.abs(rows_of(losses, COLORS[1]) - 245).max() < 5  # half of 0.5: in the middle between 40 and 450
    assert (np.diff(rows_of(angles, COLORS[0])) <= 0).all()  # a rising line; groups of layers have none
    assert not len(rows_of(angles, COLORS[1]))


def test_the_studio_plots_losses_validation_loss_and_angles():
    plain = records(*({"instance": 0.5} for _ in range(3)))
    assert [loss_plot(plain, weight).count("<polyline") for weight in (0, 0.6)] == [1, 2]
    measured = [replace(record, angles={"unet": 1.0, "unet.mid_block": 2.0}, validation_loss=0.2) for record in plain]
    page = loss_plot(measured)
    assert page.count("<polyline") == 4
    assert page.count('class="values"') == 6 and "step 2 · instance images 0.5 · validation 0.2<" in page
    assert "validation <b>0.2</b>" in page
    assert "unet <b>1°</b>" in page
    assert loss_plot(plain[:1]) == ""


def test_losses_are_smoothed_without_the_bias_of_the_first_values():
    assert smooth([3.0, 3.0, 3.0], 0.9) == pytest.approx([3, 3, 3])
    assert smooth([1.0, 4.0], 0) == [1, 4]
    averages = smooth([1.0, math.nan, 2.0], 0.5)
    assert math.isnan(averages[1]) and averages[::2] == pytest.approx([1, (0.25 * 1 + 0.5 * 2) / 0.75])
