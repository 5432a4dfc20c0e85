"""Trackers: TensorBoard by default if it is installed, the requested one, or none."""

import importlib.util
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate import PartialState
from accelerate.utils import is_wandb_available
from PIL import Image

from hra_diffusion.errors import ConfigError, OutputError
from hra_diffusion.training.config.file import to_toml, with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.outputs.trackers import choose_tracker, open_tracker
from hra_diffusion.training.prepare import prepare_run

PROJECT = Path(__file__).resolve().parents[2]
INSTALLED = bool(importlib.util.find_spec("tensorboard"))


def record(step: int) -> StepRecord:
    return StepRecord(
        step=step, loss=1.5 / step, losses={"instance": 1 / step}, gradient_norm=2.0, learning_rates={"unet": 0.02}
    )


def test_the_default_is_tensorboard_where_it_is_installed():
    assert choose_tracker(None) == ("tensorboard" if INSTALLED else None)
    assert choose_tracker("none") is None


def test_a_tracker_that_is_not_installed_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--report_to is wandb.*pip install wandb"):
        choose_tracker("wandb")
    assert choose_tracker(None) is None


def test_a_folder_named_like_a_tracker_is_not_taken_for_the_package(tmp_path, monkeypatch):
    if is_wandb_available():
        pytest.skip("wandb is installed")
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="pip install wandb"):
        choose_tracker("wandb")


def test_the_tracker_none_writes_nothing(config, tmp_path):
    with open_tracker(None, tmp_path, config, 0) as tracker:
        tracker.log(record(1))
        tracker.log_images({"a dog": [Image.new("RGB", (8, 8))]}, 1)
    assert not (tmp_path / "logs").exists()


@pytest.mark.skipif(not INSTALLED, reason="tensorboard is not installed")
@pytest.mark.parametrize("relative", [True, False])
def test_logging_dir_is_the_folder_of_tensorboard(config, tmp_path, relative):
    logs = tmp_path / "elsewhere" / "tb"
    config = with_values(config, {"logging_dir": Path("../elsewhere/tb") if relative else logs})
    (tmp_path / "run").mkdir()
    with open_tracker("tensorboard", tmp_path / "run", config, 0) as tracker:
        tracker.log(record(1))
    assert list(logs.glob("events.*"))
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.skipif(not INSTALLED, reason="tensorboard is not installed")
def test_a_logging_dir_that_is_a_file_is_refused_before_anything_is_written(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another with --logging_dir"):
        prepare_run(DreamBooth(with_values(config, {"logging_dir": tmp_path / "file"})))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not INSTALLED, reason="tensorboard is not installed")
def test_tensorboard_has_the_numbers_and_images_of_each_step_once(config, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done, steps in ((0, (1, 2, 3)), (2, (3, 4))):  # killed after step 3, resumed from step 2
        with open_tracker("tensorboard", tmp_path, config, done) as tracker:
            for step in steps:
                tracker.log(record(step))
            tracker.log_images({"a dog": [Image.new("RGB", (8, 8), "red")] * 2}, steps[-1])
        time.sleep(1)  # TensorBoard reads files in the order of their names, which have the second
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [1, 2, 3, 4]
    assert [event.value for event in losses] == pytest.approx([1.5 / step for step in (1, 2, 3, 4)])
    assert [event.value for event in events.Scalars("learning rate/unet")] == pytest.approx([0.02] * 4)
    assert events.Images("a dog")[-1].step == 4


def records_of(log: bytes):
    """Yield the records of wandb's file: seven bytes, then a log in LevelDB's format, in blocks of 32 KB."""
    record, at = b"", 7
    while at + 7 <= len(log):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", log, at)
        record += log[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or its last fragment
            yield record
            record = b""


def test_wandb_has_the_numbers_and_images_of_each_step(config, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    PartialState()  # accelerate's logging needs it, as in a run
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    with open_tracker("wandb", tmp_path, config, 0) as tracker:
        for step in (1, 2):
            tracker.log(record(step))
        tracker.log_images({"a dog": [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]}, 2)
        tracker.log(record(3))
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    entries = [Record.FromString(data) for data in records_of(path.read_bytes())]
    rows = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in entry.history.item}
        for entry in entries
        if entry.HasField("history")
    ]
    assert [row["loss"] for row in rows] == pytest.approx([1.5, 0.75, 0.5])
    assert [row["_step"] for row in rows] == [1, 2, 3]
    assert len(list(path.parent.glob("files/media/images/a dog_2_*.png"))) == 2


def test_trackio_has_the_numbers_of_each_step(config, tmp_path, monkeypatch):
    """In another process, since trackio chooses its folder when it is imported."""
    pytest.importorskip("trackio")
    code = """
import sys
from pathlib import Path
from accelerate import PartialState
from hra_diffusion.training.config.file import read_toml
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.loop.steps import StepRecord
from hra_diffusion.training.outputs.trackers import open_tracker
from PIL import Image
PartialState()
config = read_toml(Path(sys.argv[1]), DreamBoothConfig())
with open_tracker("trackio", Path("run"), config, 0) as tracker:
    for step in (1, 2, 3):
        tracker.log(StepRecord(step=step, loss=1.5 / step, losses={}, gradient_norm=2.0, learning_rates={}))
    tracker.log_images({"a dog": [Image.new("RGB", (8, 8), "red")]}, 3)
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("run")
print([(row["step"], row["loss"]) for row in SQLiteStorage.get_logs("run", run)])
"""
    (tmp_path / "config.toml").write_text(to_toml(config))
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "config.toml"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "[(1, 1.5), (2, 0.75), (3, 0.5)]" in done.stdout.splitlines()
