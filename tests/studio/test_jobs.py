"""Training jobs, whose folders hold their state; names, presets and images are checked before anything is written."""

import json
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from PIL import Image

from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.training import processes
from hra_diffusion.studio.engine.training.estimates import Estimates
from hra_diffusion.studio.engine.training.job import Status
from hra_diffusion.studio.engine.training.jobs import TrainingJobs
from hra_diffusion.studio.engine.training.training_images import CROPS, TrainingImage, read_cropped
from hra_diffusion.studio.engine.training.training_job import Preset, TrainingJob
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


def make_job(photo: Path, **changes) -> TrainingJob:
    defaults = {"name": "dog", "images": (TrainingImage(file=photo),), "subject": "dog", "preset": Preset(steps=4)}
    return TrainingJob(**defaults | changes)


def write_log(folder: Path, steps: int) -> None:
    (folder / "log.jsonl").write_text("".join(json.dumps({"step": n + 1} | RECORD) + "\n" for n in range(steps)))


@pytest.mark.parametrize(
    ("steps", "output", "adapter", "status"),
    [
        (4, "a table", True, Status.FINISHED),
        (2, "Stopped after step 2, which checkpoint-2 holds", False, Status.STOPPED),
        (2, "", False, Status.FAILED),
        (0, "warm-up\rError: The model cannot be loaded.", False, Status.FAILED),
        (1, "Traceback (most recent call last):\n  …\ntorch.OutOfMemoryError: 3 GB", False, Status.FAILED),
        (2, "ValueError: of a warning, long ago\nand then it was killed", False, Status.FAILED),
    ],
)
def test_the_folder_determines_the_status_of_a_job(tmp_path, photo, steps, output, adapter, status):
    folder = tmp_path / "runs" / "dog"
    make_job(photo).write(folder, make_job(photo).config("base", DreamBoothConfig(), folder))
    (folder / "process.json").write_text(json.dumps({"pid": 2**22 + 1, "created": 0}))
    (folder / "output.txt").write_text(output)
    write_log(folder, steps)
    if adapter:
        (folder / "adapter").mkdir()
    (job,) = TrainingJobs(tmp_path / "runs").all()
    assert (job.status, job.step, job.total_steps) == (status, steps, 4)
    assert (job.error is not None) == (status is Status.FAILED)


class SleepingJobs(TrainingJobs):
    """Training jobs whose processes sleep for a while."""

    def _launch(self, folder: Path, *flags: str) -> None:
        time.sleep(0.2)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        self._children[folder.name] = child
        process = {"pid": child.pid, "created": psutil.Process(child.pid).create_time()}
        (folder / "process.json").write_text(json.dumps(process))

    def kill(self) -> None:
        for child in self._children.values():
            child.kill()
            child.wait()


def test_only_one_of_several_simultaneous_jobs_starts_and_the_others_are_queued(tmp_path, photo):
    jobs = SleepingJobs(tmp_path / "runs")

    def start(name: str) -> Status:
        return jobs.start(make_job(photo, name=name), "base", DreamBoothConfig()).status

    try:
        with ThreadPoolExecutor() as clients:
            statuses = list(clients.map(start, ["dog", "cat", "bird"]))
        assert sorted(status.value for status in statuses) == ["queued", "queued", "running"]
        assert len(jobs.queue()) == 2 and jobs.running().name not in jobs.queue()
    finally:
        for name in jobs.queue():
            jobs.delete(name)
        jobs.kill()


def test_a_stopped_job_is_stopped_and_a_killed_job_has_failed(tmp_path, photo):
    jobs = SleepingJobs(tmp_path / "runs")
    try:
        for name, end, status in (("a", jobs.stop, Status.STOPPED), ("b", lambda _: jobs.kill(), Status.FAILED)):
            jobs.start(make_job(photo, name=name), "base", DreamBoothConfig())
            end(name)
            jobs._children[name].wait()
            job = jobs.get(name)
            assert (job.status, job.resumable) == (status, True)
            assert "killed" in (job.error or "killed")
    finally:
        jobs.kill()


STOPPED_BY_AN_EVENT = """
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))
print("ready", flush=True)
time.sleep(60)
"""


def test_a_job_on_windows_is_stopped_by_an_event_of_the_console_and_may_save_a_checkpoint(monkeypatch):
    monkeypatch.setattr(signal, "CTRL_BREAK_EVENT", signal.SIGUSR1, raising=False)
    monkeypatch.setattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    assert processes.process_group() == {"creationflags": 512}
    child = subprocess.Popen(
        [sys.executable, "-c", STOPPED_BY_AN_EVENT], stdout=subprocess.PIPE, start_new_session=True
    )
    with child:
        assert child.stdout.readline() == b"ready\n"
        processes.request_checkpoint(psutil.Process(child.pid))
        assert child.wait(30) == 7


def test_a_job_of_another_console_is_ended(monkeypatch):
    def unreachable(_):
        raise OSError("The handle is invalid")

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with child:
        process = psutil.Process(child.pid)
        monkeypatch.setattr(process, "send_signal", unreachable)
        processes.request_checkpoint(process)
        assert child.wait(30) == -signal.SIGTERM


def test_a_finished_job_does_not_resume(tmp_path, photo):
    folder = tmp_path / "runs" / "dog"
    make_job(photo).write(folder, make_job(photo).config("base", DreamBoothConfig(), folder))
    (folder / "process.json").write_text("{}")
    write_log(folder, 4)
    (folder / "adapter").mkdir()
    with pytest.raises(ConfigError, match="finished"):
        TrainingJobs(tmp_path / "runs").resume("dog")


LESSON_0_1 = """
[model]
pretrained_model_name_or_path = "base"

[adapter]
rank = 8
train_text_encoder = true

[optimiser]
optimizer = "adamw"
learning_rate = 0.02

[run]
output_dir = "{folder}"
max_train_steps = 4
checkpointing_steps = 1
checkpoints_total_limit = 1
report_to = "none"

[preview]
num_validation_images = 1
num_inference_steps = 25
validation_steps = 1
validation_prompts = ["{{instance_prompt}}", "{{instance_prompt}} on a beach", "{{class_prompt}}"]

[data]
instance_data_dir = "{folder}/pictures"
instance_prompt = "a photo of a sks dog"

[prior]
with_prior_preservation = true
class_prompt = "a photo of a dog"
num_class_images = 24
prior_target = "picture"
"""
"""The tables and names of a lesson.toml of version 0.1."""


def test_a_job_of_version_0_1_is_listed_and_resumed(tmp_path, photo, monkeypatch):
    folder = tmp_path / "runs" / "dog"
    (folder / "pictures").mkdir(parents=True)
    photo.rename(folder / "pictures" / "000.png")
    for name in ("lesson.toml", "config.toml"):
        (folder / name).write_text(LESSON_0_1.format(folder=folder))
    (folder / "process.json").write_text(json.dumps({"pid": 2**22 + 1, "created": 0, "started": 0}))
    (folder / "output.txt").write_text("Stopped after step 2, which checkpoint-2 holds: go on from there with …")
    write_log(folder, 2)
    jobs = TrainingJobs(tmp_path / "runs")
    (job,) = jobs.all()
    assert (job.name, job.status, job.step, job.total_steps) == ("dog", Status.STOPPED, 2, 4)

    commands = []
    popen = subprocess.Popen

    def launch(command: list[str], **options) -> subprocess.Popen:
        commands.append(command)
        return popen([sys.executable, "-c", ""], **options)

    monkeypatch.setattr(subprocess, "Popen", launch)
    jobs.resume("dog")
    jobs._children["dog"].wait()
    (command,) = commands
    assert command[-4:] == ["--config", str(folder / "lesson.toml"), "--resume_from_checkpoint", "latest"]


def test_settings_of_version_0_1_are_read_completely(tmp_path):
    from hra_diffusion.training.config.file import read_toml

    (tmp_path / "lesson.toml").write_text(LESSON_0_1.format(folder=tmp_path))
    config = read_toml(tmp_path / "lesson.toml", DreamBoothConfig())
    assert config.data.instance_data_dir == tmp_path / "pictures"
    assert config.prior.prior_target == "image"
    assert (config.optimizer.learning_rate, config.validation.validation_steps) == (0.02, 1)


def test_a_job_is_written_as_images_captions_and_settings(tmp_path, photo):
    job = make_job(photo, images=(TrainingImage(file=photo, caption="a sks dog asleep", crop="0, 0, 20, 30"),))
    job.write(tmp_path / "run", job.config("base", DreamBoothConfig(), tmp_path / "run"))
    with Image.open(tmp_path / "run" / "images" / "000.png") as image:
        assert image.size == (20, 30)
    assert (tmp_path / "run" / "images" / "000.txt").read_text() == "a sks dog asleep"
    assert (tmp_path / "run" / "job.toml").is_file()
    assert (job.prompt, job.class_prompt) == ("a photo of a sks dog", "a photo of a dog")


@pytest.mark.parametrize("crop", CROPS)
def test_named_crops_are_squares_or_the_whole_image(photo, crop):
    assert read_cropped(TrainingImage(file=photo, crop=crop)).size == ((60, 40) if crop == "whole" else (40, 40))


@pytest.mark.parametrize("crop", ["middle-ish", "0, 0, 0, 5", "50, 0, 20, 20", "-1, 0, 5, 5", "1, 2, 3"])
def test_an_invalid_crop_is_refused_with_the_name_of_the_image(photo, crop):
    with pytest.raises(ImageError, match=r"a\.png"):
        read_cropped(TrainingImage(file=photo, crop=crop))


def test_a_job_that_is_not_utf8_is_refused_before_anything_is_written(tmp_path, photo):
    job, folder = make_job(photo, token="sks\udcff"), tmp_path / "dog"
    with pytest.raises(ConfigError, match=r"--instance_prompt is .*which is not UTF-8"):
        job.write(folder, job.config("base", DreamBoothConfig(), folder))
    assert not folder.exists()


@pytest.mark.parametrize(
    "changes", [{"name": "../x"}, {"name": ""}, {"subject": " "}, {"token": ""}, {"images": ()}, {"token": "a\nb"}]
)
def test_an_invalid_job_is_refused(photo, changes):
    with pytest.raises(ConfigError):
        make_job(photo, **changes)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"rank": 3}, {"validations": 99}, {"class_images": -1}])
def test_a_preset_out_of_range_is_refused(changes):
    with pytest.raises(ConfigError):
        Preset(**{"steps": 10} | changes)


def test_adapters_of_the_project_are_neither_renamed_nor_deleted(tmp_path):
    built_in = Path(__file__).resolve().parents[2] / "assets" / "adapters"
    library = Library(tmp_path, built_in)
    assert {entry.name for entry in library.entries()} >= {"tiger", "teapot"}
    for change in (lambda: library.delete("tiger"), lambda: library.rename("tiger", "lion")):
        with pytest.raises(ConfigError, match="comes with the project"):
            change()


@pytest.mark.parametrize(
    "config", ['{"annotator_settings": ["a"]}', '{"annotator_settings": {}, "annotator": "canny"', "[]"]
)
def test_a_damaged_adapter_is_skipped_with_one_warning(tmp_path, caplog, config):
    for name in ("good", "bad"):
        for part in ("unet", "condition_encoder"):
            (tmp_path / name / part).mkdir(parents=True)
        (tmp_path / name / "unet" / "adapter_config.json").write_text('{"r": 2}')
        (tmp_path / name / "condition_encoder" / "config.json").write_text(config if name == "bad" else "{}")
    library = Library(tmp_path)
    assert [[entry.name for entry in library.entries()] for _ in range(2)] == [["good"]] * 2
    assert caplog.text.count("bad is skipped") == 1


def test_one_dry_run_gives_an_estimate_for_every_preset(tmp_path):
    estimates = Estimates(tmp_path / "costs.json")
    assert estimates.get("base") is None
    report = {"time": "0.50 s a step, 0:01:40 in all, and 12 s before", "memory": "1.25 GB at most in two"}
    estimates.save("base", report)
    estimates.save("other", {"time": "unknown"})
    estimate = Estimates(tmp_path / "costs.json").get("base")
    assert estimate is not None and estimates.get("other") is None
    assert (estimate.seconds(Preset(steps=200)), estimate.memory) == (112.0, 1.25)
