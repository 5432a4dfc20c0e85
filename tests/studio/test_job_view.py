"""What the page displays of a training job: checkpoints as adapters, log, memory, and its place in the list."""

import json
import os
import shutil

import psutil
import pytest
from PIL import Image

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.files import write_file
from hra_diffusion.pipelines.models import image_name
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.training.finished_jobs import job_adapter
from hra_diffusion.studio.engine.training.job import IMPORTED, Status
from hra_diffusion.studio.engine.training.job_checkpoints import add_checkpoint, checkpoint_steps
from hra_diffusion.studio.engine.training.job_output import job_memory, log_tail
from hra_diffusion.studio.engine.training.jobs import TrainingJobs
from hra_diffusion.studio.tabs.job_list import job_entries
from hra_diffusion.studio.tabs.rotation_summary import rotation_summary
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.defaults import embedded_defaults
from hra_diffusion.training.config.file import to_toml, with_values
from hra_diffusion.training.loop.steps import StepRecord
from tests.studio.test_jobs import make_job, photo, write_log  # noqa: F401 - a fixture


@pytest.fixture
def jobs(tmp_path, photo, adapter_folders) -> TrainingJobs:  # noqa: F811
    """A finished job named dog, with checkpoints of two steps and validation images."""
    job, folder = make_job(photo), tmp_path / "runs" / "dog"
    config = job.config("base", DreamBoothConfig(), folder)
    job.write(folder, config)
    shutil.copyfile(folder / "job.toml", folder / "config.toml")
    write_log(folder, 4)
    for step, name in ((2, "amber"), (4, "birch")):
        checkpoint = folder / f"checkpoint-{step}"
        shutil.copytree(adapter_folders[name], checkpoint / "adapter")
        (checkpoint / "training_state.json").write_text("{}")
    shutil.copytree(folder / "checkpoint-4" / "adapter", folder / "adapter")
    (folder / "checkpoint-3").mkdir()  # was not completed
    for step, color in ((1, "red"), (3, "blue")):
        path = folder / "validation" / f"step-{step}" / image_name(job.prompt, 0)
        write_file(path, Image.new("RGB", (4, 4), color).save)
    return TrainingJobs(tmp_path / "runs")


def test_a_checkpoint_is_added_under_a_free_name_with_its_prompt_and_image(jobs, tmp_path, adapter_folders):
    library, job = Library(tmp_path / "adapters"), jobs.get("dog")
    assert checkpoint_steps(job) == [4, 2]
    names = [add_checkpoint(library, job, 2).name for _ in range(2)]
    assert names == ["dog step 2", "dog step 2 2"]
    entry = library.entry("dog step 2")
    assert (entry.trigger, entry.token) == ("a photo of a sks dog", "sks")
    weights = "unet/adapter_model.safetensors"
    assert (entry.folder / weights).read_bytes() == (adapter_folders["amber"] / weights).read_bytes()
    with Image.open(entry.thumbnail) as image:
        assert image.getpixel((0, 0)) == (255, 0, 0)  # of step 1, the last one before
    assert sorted(path.name for path in library.folder.iterdir()) == names
    for step in (3, 1, "2", None):
        with pytest.raises(ConfigError, match="known are: 2, 4"):
            add_checkpoint(library, job, step)


def test_the_adapter_of_a_job_is_found_under_its_name_in_the_library(jobs, tmp_path):
    library, job = Library(tmp_path / "adapters"), jobs.get("dog")
    with pytest.raises(ConfigError, match="choose one of its checkpoints"):
        job_adapter(library, job)
    library.add(job.folder, "dog 2")
    assert job_adapter(library, job).name == "dog 2"
    library.rename("dog 2", "my dog")
    (job.folder / IMPORTED).write_text("dog 2")
    assert (job.status, job_adapter(library, job).name) == (Status.FINISHED, "my dog")


def test_the_log_ends_with_the_last_state_of_a_progress_bar_and_memory_is_measured_while_a_job_runs(jobs):
    folder = jobs.get("dog").folder
    assert log_tail(folder) == [] and job_memory(folder) is None
    lines = "".join(f"line {number}\n" for number in range(9000))
    (folder / "output.txt").write_bytes(f"{lines}\n 10 %\r 50 %\r\x1b[1m100 %\x1b[0m\r\nend".encode() + b"\xff")
    assert log_tail(folder, 3) == ["line 8999", "100 %", "end\ufffd"]
    (folder / "process.json").write_text(json.dumps({"pid": os.getpid(), "created": psutil.Process().create_time()}))
    memory = job_memory(folder)
    assert memory is not None and memory.process > 10_000_000


def test_a_rotation_has_a_verdict_for_the_jobs_that_were_measured_alone(jobs):
    job = jobs.get("dog")
    measured = embedded_defaults(DreamBoothConfig, "embedded.toml")

    def summary(angle: float, **changes: object) -> str:
        config = with_values(measured, {"with_prior_preservation": False} | changes)
        (job.folder / "job.toml").write_text(to_toml(config))
        angles = {"unet": angle, "unet.mid_block": 1.0, "text_encoder": 2.0}
        record = StepRecord(step=1, loss=1.0, losses={}, gradient_norm=1.0, learning_rates={}, angles=angles)
        return rotation_summary(job, [record])

    assert summary(12.4).startswith("Mean rotation 12°: small. Subjects of jobs like this one were learned best at 20°")
    assert summary(22).startswith("Mean rotation 22°: as in jobs")
    assert summary(38).startswith("Mean rotation 38°: large.")
    for changes in (
        {"with_prior_preservation": True},
        {"rank": 4},
        {"learning_rate": 0.01},
        {"pretrained_model_name_or_path": "other"},
    ):
        assert "not measured" in summary(12.4, **changes)
    assert rotation_summary(job, []) == ""


def test_the_list_has_the_running_job_first_then_the_queue(session, jobs, photo, monkeypatch):  # noqa: F811
    monkeypatch.setattr(session, "jobs", jobs)
    for number, name in enumerate(("ant", "bee", "cow")):
        job, folder = make_job(photo, name=name), jobs.folder / name
        job.write(folder, job.config("base", DreamBoothConfig(), folder))
        if name != "cow":
            (folder / "queued.json").write_text(json.dumps({"queued": 10 - number}))
    process = {"pid": os.getpid(), "created": psutil.Process().create_time()}
    (jobs.folder / "cow" / "process.json").write_text(json.dumps(process))
    assert [(entry["name"], entry["state"], entry["progress"]) for entry in job_entries(session)] == [
        ("cow", "running", "0 of 4 steps"),
        ("bee", "queued", "number 1 in the queue"),
        ("ant", "queued", "number 2 in the queue"),
        ("dog", "finished", "4 of 4 steps"),
    ]
