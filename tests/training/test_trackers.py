"""Where numbers go: TensorBoard by default where it is installed, what was asked for, or nowhere."""

import importlib.util

import pytest
from PIL import Image

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.loop import StepRecord
from hra_diffusion.training.trackers import choose_tracker, tracking

INSTALLED = bool(importlib.util.find_spec("tensorboard"))


def record(step: int) -> StepRecord:
    return StepRecord(
        step=step, loss=1.5 / step, losses={"instance": 1 / step}, gradient_norm=2.0, learning_rates={"unet": 0.02}
    )


def test_the_default_is_tensorboard_where_it_is_installed():
    assert choose_tracker(None) == ("tensorboard" if INSTALLED else None)
    assert choose_tracker("none") is None


def test_a_tracker_that_is_not_installed_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--report_to is wandb.*pip install wandb"):
        choose_tracker("wandb")
    assert choose_tracker(None) is None


def test_nowhere_is_a_tracker_too(config, tmp_path):
    with tracking(None, tmp_path, config, 0) as tracker:
        tracker.log(record(1))
        tracker.log_pictures({"a dog": [Image.new("RGB", (8, 8))]}, 1)
    assert not (tmp_path / "logs").exists()


@pytest.mark.skipif(not INSTALLED, reason="tensorboard is not installed")
def test_tensorboard_has_the_numbers_and_pictures_of_each_step_once(config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done, steps in ((0, (1, 2, 3)), (2, (3, 4))):  # killed after step 3, and gone on from step 2
        with tracking("tensorboard", tmp_path, config, done) as tracker:
            for step in steps:
                tracker.log(record(step))
            tracker.log_pictures({"a dog": [Image.new("RGB", (8, 8), "red")] * 2}, steps[-1])
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [1, 2, 3, 4]
    assert [event.value for event in losses] == pytest.approx([1.5 / step for step in (1, 2, 3, 4)])
    assert [event.value for event in events.Scalars("learning rate/unet")] == pytest.approx([0.02] * 4)
    assert events.Images("a dog")[-1].step == 4
