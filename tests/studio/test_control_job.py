"""Training jobs of controls: their settings, captions and command, and a real run of two steps."""

import time
from pathlib import Path

import pytest
from PIL import Image

from hra_diffusion.errors import ConfigError, ImageError
from hra_diffusion.studio.engine.setting_error import SettingError
from hra_diffusion.studio.engine.training.control_job import CONTROL_PRESETS, ControlJob
from hra_diffusion.studio.engine.training.job import Status, read_job
from hra_diffusion.studio.engine.training.job_settings import form_values, moved_settings
from hra_diffusion.studio.engine.training.processes import train_command
from hra_diffusion.studio.engine.training.training_images import TrainingImage, with_conditions
from hra_diffusion.studio.engine.training.training_job import Preset, read_settings
from hra_diffusion.studio.tabs.training_fields import FIELDS, job_from_values
from hra_diffusion.training.config import ControlNetConfig
from hra_diffusion.training.data.pairs import read_pairs


def make_job(folder: Path, **changes) -> ControlJob:
    images: list[TrainingImage] = []
    for number, caption in enumerate(("a red square", "")):
        file = folder / f"{number}.png"
        Image.new("RGB", (32, 32), "red").save(file)
        images.append(TrainingImage(file=file, caption=caption))
    preset = Preset(steps=8, rank=4, class_images=0, validations=2, inference_steps=1)
    defaults = {"name": "edges", "images": tuple(images), "subject": "square", "preset": preset}
    return ControlJob(**defaults | changes)


def test_a_control_s_job_has_captions_an_annotator_and_its_own_command(tmp_path):
    job, folder = make_job(tmp_path, annotator="scribble", options={"seed": 3}), tmp_path / "runs" / "edges"
    job.write(folder, job.config("base", ControlNetConfig(), folder))
    config = read_settings(folder)
    assert isinstance(config, ControlNetConfig) and config.pairs.train_data_dir == folder / "images"
    assert (config.control.annotator, config.run.seed, config.adapter.rank) == ("scribble", 3, 4)
    assert (folder / "images" / "000.txt").read_text() == "a red square"
    assert (folder / "images" / "001.txt").read_text() == "a photo of a square"
    assert "train-control" in train_command(folder)
    values = form_values(folder)
    assert (values["kind"], values["annotator"], values["seed"], values["steps"]) == ("control", "scribble", "3", 8)
    assert "subject" not in values
    (text,) = moved_settings(folder, tmp_path / "runs" / "lines").values()
    assert str(tmp_path / "runs" / "lines" / "images") in text and "[control]" in text
    assert read_job("edges", folder).status is Status.FAILED  # it has never started


def test_uploaded_conditions_belong_to_the_images_of_their_names(tmp_path):
    uploads = tmp_path / "conditions"
    uploads.mkdir()
    for name, mode, size in (("0.jpg", "RGB", (64, 64)), ("1.png", "RGBA", (32, 32))):
        Image.new(mode, size, "white").save(uploads / name)
    crop = TrainingImage(file=make_job(tmp_path).images[0].file, crop="0, 8, 16, 24")
    images = with_conditions([crop, make_job(tmp_path).images[1]], sorted(uploads.iterdir()))
    job, folder = make_job(tmp_path, annotator="given", images=tuple(images)), tmp_path / "runs" / "edges"
    job.write(folder, job.config("base", ControlNetConfig(), folder))
    pairs = read_pairs(folder / "images", read_settings(folder).pairs)
    assert [pair.condition.name for pair in pairs] == ["000.png", "001.png"]
    with Image.open(pairs[0].condition) as first, Image.open(pairs[1].condition) as second:
        assert (first.size, second.size, second.mode) == ((32, 48), (32, 32), "RGBA")
    assert [image.condition for image in form_values(folder)["images"]] == [pair.condition for pair in pairs]
    Image.new("RGB", (64, 32)).save(uploads / "1.png")
    with pytest.raises(ImageError, match=r"condition 1.png has 64×32 pixels"):
        job.write(tmp_path / "other", job.config("base", ControlNetConfig(), folder))


def test_conditions_without_image_and_images_without_condition_are_refused(tmp_path):
    images = make_job(tmp_path).images
    for names, message in (
        (["0.png"], r"no condition: 1\.png"),
        (["0.png", "1.png", "x.png"], r"no image: x\.png"),
        (["0.png", "0.jpg"], "Two conditions are named '0'"),
    ):
        with pytest.raises(ConfigError, match=message):
            with_conditions(images, [tmp_path / name for name in names])
    with pytest.raises(ConfigError, match="Two images are named '0'"):
        with_conditions([*images, images[0]], [tmp_path / "0.png"])
    with pytest.raises(SettingError, match="conditions are missing"):
        make_job(tmp_path, annotator="given")


def test_a_control_needs_a_class_or_captions_and_a_known_annotator(tmp_path):
    images = make_job(tmp_path).images
    with pytest.raises(SettingError, match="subject is empty"):
        make_job(tmp_path, subject="")
    assert make_job(tmp_path, subject="", images=images[:1]).caption(images[0]) == "a red square"
    with pytest.raises(ConfigError, match="no annotator 'pose'"):
        make_job(tmp_path, annotator="pose")
    job = make_job(tmp_path, options={"validation_prompts": ("a cat",)})
    with pytest.raises(SettingError, match="validation_prompts are for subjects"):
        job.config("base", ControlNetConfig(), tmp_path)


def test_the_form_makes_jobs_of_both_kinds(tmp_path):
    files = [str(image.file) for image in make_job(tmp_path).images]
    values = dict.fromkeys(FIELDS) | {"files": files, "name": "x", "subject": "dog", "token": "sks", "preset": "Usual"}
    assert not isinstance(job_from_values([values[name] for name in FIELDS]), ControlJob)
    values |= {"kind": "control", "annotator": "color"}
    job = job_from_values([values[name] for name in FIELDS])
    assert isinstance(job, ControlJob) and (job.annotator, job.preset) == ("color", CONTROL_PRESETS["Usual"])
    values |= {"conditions": files, "annotator": "given"}
    job = job_from_values([values[name] for name in FIELDS])
    assert [str(image.condition) for image in job.images] == files
    with pytest.raises(SettingError, match="conditions are for controls"):
        job_from_values([(values | {"kind": "subject"})[name] for name in FIELDS])
    with pytest.raises(ConfigError, match="no kind 'style'"):
        job_from_values([(values | {"kind": "style"})[name] for name in FIELDS])


@pytest.mark.slow
def test_a_trained_control_is_in_the_library_and_its_images_have_captions(session, tmp_path):
    from hra_diffusion.studio.engine.training.validation_images import validation_images

    images = make_job(tmp_path).images
    job = make_job(
        tmp_path,
        name="lines",
        preset=Preset(steps=2, rank=2, class_images=0, validations=1, inference_steps=1),
        images=tuple(with_conditions(images, [image.file for image in images])),
        annotator="given",
    )
    session.train(job)
    end = time.monotonic() + 240
    while session.job("lines").status in (Status.RUNNING, Status.QUEUED) and time.monotonic() < end:
        time.sleep(0.5)
    finished = session.job("lines")
    assert (finished.status, finished.error) == (Status.FINISHED, None)
    entry = session.library.entry("lines")
    assert (entry.annotator, entry.rank) == ("given", 2)
    assert [image.prompt for image in validation_images(finished)] == ["a red square", "a photo of a square"]
    session.jobs.delete("lines")
    session.library.delete("lines")
