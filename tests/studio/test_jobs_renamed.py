"""Training jobs are renamed and cloned, and their thumbnails are the last step's images of the subject."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from PIL import Image

from hra_diffusion.errors import BusyError, ConfigError, OutputError
from hra_diffusion.formats.files import write_file
from hra_diffusion.pipelines.models import image_name
from hra_diffusion.studio.engine.adapters.subject_prompts import split_prompts, subject_prompt
from hra_diffusion.studio.engine.training.job import Status
from hra_diffusion.studio.engine.training.job_settings import form_values
from hra_diffusion.studio.engine.training.jobs import TrainingJobs
from hra_diffusion.studio.engine.training.training_images import TrainingImage
from hra_diffusion.studio.engine.training.training_job import PRESETS, Preset, TrainingJob
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import read_toml


@pytest.fixture
def job(tmp_path) -> TrainingJob:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    images = (
        TrainingImage(file=tmp_path / "a.png", caption="asleep", crop="middle"),
        TrainingImage(file=tmp_path / "a.png"),
    )
    return TrainingJob(name="dog", images=images, token="sks", subject="hot dog", preset=PRESETS["Quick look"])


@pytest.fixture
def jobs(tmp_path, job) -> TrainingJobs:
    """A stopped job named dog, with the settings that its run has written."""
    folder = tmp_path / "runs" / "dog"
    config = job.config("base", DreamBoothConfig(), folder)
    job.write(folder, config)
    (folder / "job.toml").rename(folder / "config.toml")
    job.write(folder, config)
    (folder / "stop.txt").touch()
    return TrainingJobs(tmp_path / "runs")


def test_a_renamed_job_has_the_paths_of_its_new_folder_and_leaves_its_name_free(jobs, job):
    assert jobs.rename("dog", "puppy").status is Status.STOPPED
    folder = jobs.folder / "puppy"
    for name in ("job.toml", "config.toml"):
        config = read_toml(folder / name, DreamBoothConfig())
        assert (config.run.output_dir, config.data.instance_data_dir) == (folder, folder / "images")
        assert config.run.max_train_steps == job.preset.steps
    assert jobs.names() == ["puppy"]


def test_a_running_job_and_taken_or_invalid_names_are_refused(jobs, job):
    (jobs.folder / "cat").mkdir()
    for name, message in (("cat", "is taken"), ("../x", "is no name"), (" ", "is empty"), (None, "is empty")):
        with pytest.raises(ConfigError, match=message):
            jobs.rename("dog", name)
    process = {"pid": os.getpid(), "created": psutil.Process().create_time()}
    (jobs.folder / "dog" / "process.json").write_text(json.dumps(process))
    with pytest.raises(BusyError, match="stop it first"):
        jobs.rename("dog", "puppy")
    assert sorted(jobs.names()) == ["cat", "dog"]


def test_a_job_whose_settings_cannot_be_written_keeps_its_name(jobs, monkeypatch):
    from hra_diffusion.studio.engine.training import jobs as module

    def full_disk(path: Path, write: object) -> None:
        raise OutputError(f"Cannot write {path}.")

    monkeypatch.setattr(module, "write_file", full_disk)
    with pytest.raises(OutputError):
        jobs.rename("dog", "puppy")
    assert jobs.names() == ["dog"] and jobs.get("dog").status is Status.STOPPED


def test_the_form_of_a_clone_has_the_settings_of_its_job(jobs, job):
    values = form_values(jobs.folder / "dog")
    assert (values["prompt_prefix"], values["token"], values["subject"]) == ("a photo of", "sks", "hot dog")
    assert {name: values[name] for name in asdict(job.preset)} == asdict(job.preset)
    assert [image.caption for image in values["images"]] == ["asleep", ""]
    with Image.open(values["images"][0].file) as image:
        assert image.size == (40, 40)


@pytest.mark.parametrize("class_images", [0, 8])
@pytest.mark.parametrize("validations", [0, 1, 3])
def test_a_clone_of_a_clone_is_the_same(tmp_path, job, class_images, validations):
    preset = Preset(steps=100, class_images=class_images, validations=validations)
    again = TrainingJob(name="dog", images=job.images, subject="dog", preset=preset)
    again.write(tmp_path / "dog", again.config("base", DreamBoothConfig(), tmp_path / "dog"))
    values = form_values(tmp_path / "dog")
    assert {name: values[name] for name in asdict(preset)} == asdict(preset)


@pytest.mark.parametrize(
    "words", [("a photo of", "sks", "dog"), ("", "s k s", "hot dog"), ("a 3d render of a", "x", "a")]
)
def test_prompts_are_divided_into_their_parts(words):
    prefix, token, subject = words
    assert split_prompts(subject_prompt(prefix, token, subject), subject_prompt(prefix, subject)) == words


def test_prompts_of_another_form_are_not_divided():
    for instance, class_ in (("sks", ""), ("", ""), ("a dog", "a dog"), ("my sks dog", "my dog"), ("a sks", "a dog")):
        assert split_prompts(instance, class_) is None


def test_the_thumbnail_is_the_last_step_s_image_of_the_subject(jobs, job):
    prompts = (job.prompt, f"{job.prompt} on a beach", job.class_prompt)
    for step in (5, 100):
        for prompt in prompts:
            path = jobs.folder / "dog" / "validation" / f"step-{step}" / image_name(prompt, 7)
            write_file(path, Image.new("RGB", (4, 4)).save)
    thumbnail = jobs.get("dog").thumbnail()
    assert thumbnail is not None
    assert (thumbnail.parent.name, thumbnail.name) == ("step-100", image_name(job.prompt, 7))
    for path in thumbnail.parent.glob(f"{image_name(job.prompt, 7)}"):
        path.unlink()
    other = jobs.get("dog").thumbnail()
    assert other is not None and other.parent.name == "step-100"
