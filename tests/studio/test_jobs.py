"""TrainingJobs are what lies in their folders; lessons and names are checked before anything is written."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from hra_diffusion.errors import BusyError, ConfigError, ImageError
from hra_diffusion.studio.engine.estimates import Estimates
from hra_diffusion.studio.engine.jobs import TrainingJobs, Status
from hra_diffusion.studio.engine.library import Library
from hra_diffusion.studio.engine.training_job import CROPS, Preset, TrainingImage, TrainingJob, cropped
from hra_diffusion.training.config import DreamBoothConfig

RECORD = {
    "loss": 1.0,
    "losses": {"instance": 1.0},
    "penalty": 0.0,
    "gradient_norm": 1.0,
    "learning_rates": {"unet": 0.1},
}


@pytest.fixture
def photo(tmp_path) -> Path:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


def lesson(photo: Path, **changes) -> TrainingJob:
    return TrainingJob(
        **{"name": "dog", "images": (TrainingImage(file=photo),), "subject": "dog", "preset": Preset(steps=4)}
        | changes
    )


@pytest.mark.parametrize(
    ("steps", "said", "adapter", "status"),
    [
        (4, "a table", True, Status.FINISHED),
        (2, "Stopped after step 2, which checkpoint-2 holds", False, Status.STOPPED),
        (2, "", False, Status.FAILED),
        (0, "warm-up\rError: The model cannot be loaded.", False, Status.FAILED),
        (1, "Traceback (most recent call last):\n  …\ntorch.OutOfMemoryError: 3 GB", False, Status.FAILED),
        (2, "ValueError: of a warning, long ago\nand then it was killed", False, Status.FAILED),
    ],
)
def test_a_run_stands_as_its_folder_says(tmp_path, photo, steps, said, adapter, status):
    folder = tmp_path / "runs" / "dog"
    lesson(photo).write(folder, lesson(photo).settings("base", DreamBoothConfig(), folder))
    (folder / "process.json").write_text(json.dumps({"pid": 2**22 + 1, "created": 0}))
    (folder / "output.txt").write_text(said)
    (folder / "log.jsonl").write_text("".join(json.dumps({"step": n + 1} | RECORD) + "\n" for n in range(steps)))
    if adapter:
        (folder / "adapter").mkdir()
    (run,) = TrainingJobs(tmp_path / "runs").all()
    assert (run.status, run.step, run.total_steps) == (status, steps, 4)
    assert (run.error is not None) == (status is Status.FAILED)


class Waiting(TrainingJobs):
    """TrainingJobs whose processes do nothing, for a while."""

    def _launch(self, folder: Path, *flags: str) -> None:
        time.sleep(0.2)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        self._children[folder.name] = child
        about = {"pid": child.pid, "created": psutil.Process(child.pid).create_time()}
        (folder / "process.json").write_text(json.dumps(about))

    def end(self) -> None:
        for child in self._children.values():
            child.kill()
            child.wait()


def test_of_two_lessons_at_once_one_is_refused(tmp_path, photo):
    runs = Waiting(tmp_path / "runs")

    def start(name: str) -> str:
        try:
            return runs.start(lesson(photo, name=name), "base", DreamBoothConfig()).name
        except BusyError:
            return ""

    try:
        with ThreadPoolExecutor() as visitors:
            started = list(visitors.map(start, ["dog", "cat", "bird"]))
        assert len([name for name in started if name]) == 1
    finally:
        runs.end()


def test_a_run_that_was_asked_to_stop_is_stopped_and_one_that_was_killed_is_not(tmp_path, photo):
    runs = Waiting(tmp_path / "runs")
    try:
        for name, end, status in (("a", runs.stop, Status.STOPPED), ("b", lambda _: runs.end(), Status.FAILED)):
            runs.start(lesson(photo, name=name), "base", DreamBoothConfig())
            end(name)
            runs._children[name].wait()
            run = runs.get(name)
            assert (run.status, run.resumable) == (status, True)
            assert "killed" in (run.error or "killed")
    finally:
        runs.end()


def test_a_finished_run_does_not_begin_again(tmp_path, photo):
    folder = tmp_path / "runs" / "dog"
    lesson(photo).write(folder, lesson(photo).settings("base", DreamBoothConfig(), folder))
    (folder / "process.json").write_text("{}")
    (folder / "log.jsonl").write_text("".join(json.dumps({"step": n + 1} | RECORD) + "\n" for n in range(4)))
    (folder / "adapter").mkdir()
    with pytest.raises(ConfigError, match="finished"):
        TrainingJobs(tmp_path / "runs").resume("dog")


def test_a_lesson_is_images_captions_and_settings(tmp_path, photo):
    told = lesson(photo, images=(TrainingImage(file=photo, caption="a sks dog asleep", crop="0, 0, 20, 30"),))
    told.write(tmp_path / "run", told.settings("base", DreamBoothConfig(), tmp_path / "run"))
    with Image.open(tmp_path / "run" / "images" / "000.png") as image:
        assert image.size == (20, 30)
    assert (tmp_path / "run" / "images" / "000.txt").read_text() == "a sks dog asleep"
    assert (told.prompt, told.class_prompt) == ("a photo of a sks dog", "a photo of a dog")


@pytest.mark.parametrize("crop", CROPS)
def test_crops_by_name_are_squares_or_the_whole(photo, crop):
    assert cropped(TrainingImage(file=photo, crop=crop)).size == ((60, 40) if crop == "whole" else (40, 40))


@pytest.mark.parametrize("crop", ["middle-ish", "0, 0, 0, 5", "50, 0, 20, 20", "-1, 0, 5, 5", "1, 2, 3"])
def test_a_crop_that_cannot_be_is_refused_by_the_image_s_name(photo, crop):
    with pytest.raises(ImageError, match=r"a\.png"):
        cropped(TrainingImage(file=photo, crop=crop))


@pytest.mark.parametrize(
    "changes", [{"name": "../x"}, {"name": ""}, {"subject": " "}, {"token": ""}, {"images": ()}, {"token": "a\nb"}]
)
def test_a_lesson_that_cannot_be_is_refused(photo, changes):
    with pytest.raises(ConfigError):
        lesson(photo, **changes)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"rank": 3}, {"validations": 99}, {"class_images": -1}])
def test_an_effort_out_of_range_is_refused(changes):
    with pytest.raises(ConfigError):
        Preset(**{"steps": 10} | changes)


def test_what_came_with_the_project_is_neither_renamed_nor_deleted(tmp_path):
    built_in = Path(__file__).resolve().parents[2] / "assets" / "adapters"
    library = Library(tmp_path, built_in)
    assert {entry.name for entry in library.entries()} >= {"tiger", "teapot"}
    for change in (lambda: library.delete("tiger"), lambda: library.rename("tiger", "lion")):
        with pytest.raises(ConfigError, match="comes with the project"):
            change()


@pytest.mark.parametrize(
    "config", ['{"annotator_settings": ["a"]}', '{"annotator_settings": {}, "annotator": "canny"', "[]"]
)
def test_a_damaged_adapter_is_passed_over_with_one_warning(tmp_path, caplog, config):
    for name in ("good", "bad"):
        for part in ("unet", "condition_encoder"):
            (tmp_path / name / part).mkdir(parents=True)
        (tmp_path / name / "unet" / "adapter_config.json").write_text('{"r": 2}')
        (tmp_path / name / "condition_encoder" / "config.json").write_text(config if name == "bad" else "{}")
    library = Library(tmp_path)
    assert [[entry.name for entry in library.entries()] for _ in range(2)] == [["good"]] * 2
    assert caplog.text.count("bad is passed over") == 1


def test_what_was_measured_once_says_what_every_effort_costs(tmp_path):
    costs = Estimates(tmp_path / "costs.json")
    assert costs.of("base") is None
    costs.keep("base", {"time": "0.50 s a step, 0:01:40 in all, and 12 s before", "memory": "1.25 GB at most in two"})
    costs.keep("other", {"time": "unknown"})
    cost = Estimates(tmp_path / "costs.json").of("base")
    assert cost is not None and costs.of("other") is None
    assert (cost.seconds(Preset(steps=200)), cost.memory) == (112.0, 1.25)
