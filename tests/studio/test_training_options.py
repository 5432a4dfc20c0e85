"""Advanced settings of a training job: the command line's names, validation prompts and the images of each step."""

from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.files import write_file
from hra_diffusion.pipelines.models import image_name
from hra_diffusion.studio.engine.setting_error import SettingError
from hra_diffusion.studio.engine.training.job import read_job
from hra_diffusion.studio.engine.training.job_settings import form_values
from hra_diffusion.studio.engine.training.run_options import RUN_OPTIONS, parse_run_options
from hra_diffusion.studio.engine.training.training_images import TrainingImage
from hra_diffusion.studio.engine.training.training_job import VALIDATION_PROMPTS, Preset, TrainingJob
from hra_diffusion.studio.engine.training.validation_images import validation_images, validation_steps
from hra_diffusion.studio.tabs.labels import LABELS
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.file import flat_values

TEXTS = {
    "validation_prompts": "{instance_prompt} at night\n\n a red hat ",
    "learning_rate": "0.05",
    "resolution": "128",
    "train_batch_size": "2",
    "seed": "7",
    "target_modules": "to_q, to_v",
    "checkpointing_steps": "3",
}


def make_job(folder: Path, **changes) -> TrainingJob:
    write_file(folder / "a.png", Image.new("RGB", (8, 8)).save)
    defaults = {"name": "dog", "images": (TrainingImage(file=folder / "a.png"),), "subject": "dog"}
    return TrainingJob(**defaults | {"preset": Preset(steps=12)} | changes)


def test_the_options_of_a_job_are_the_run_s_settings_and_the_form_has_them_again(tmp_path):
    job, folder = make_job(tmp_path, options=parse_run_options(TEXTS)), tmp_path / "dog"
    config = job.config("base", DreamBoothConfig(), folder)
    values = flat_values(config)
    assert {name: values[name] for name in RUN_OPTIONS} == {
        "validation_prompts": ("{instance_prompt} at night", "a red hat"),
        "learning_rate": 0.05,
        "resolution": 128,
        "train_batch_size": 2,
        "seed": 7,
        "target_modules": ("to_q", "to_v"),
        "checkpointing_steps": 3,
    }
    job.write(folder, config)
    form = form_values(folder)
    assert parse_run_options(form) == job.options
    assert {name: form[name] for name in asdict(job.preset)} == asdict(job.preset)


def test_empty_options_are_the_base_s_and_all_have_labels(tmp_path):
    assert parse_run_options(dict.fromkeys(RUN_OPTIONS, " ")) == parse_run_options({}) == {}
    config = make_job(tmp_path).config("base", DreamBoothConfig(), tmp_path)
    assert config.validation.validation_prompts == VALIDATION_PROMPTS
    assert (config.run.checkpointing_steps, config.run.checkpoints_total_limit) == (3, None)
    assert RUN_OPTIONS.keys() <= LABELS.keys() and RUN_OPTIONS.keys() <= flat_values(config).keys()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("learning_rate", "fast", "must be a number"),
        ("learning_rate", "0", "greater than 0"),
        ("learning_rate", "nan", "finite"),
        ("resolution", "1.5", "whole number"),
        ("resolution", "99999", "at most 4096"),
        ("seed", "-1", "at least 0"),
        ("train_batch_size", "0", "at least 1"),
        ("target_modules", "to_q .*", "ends of layer names"),
        ("validation_prompts", "a {dog}", "use {instance_prompt}"),
        ("validation_prompts", "a\n" * 9, "at most 8"),
    ],
)
def test_an_option_out_of_range_is_refused_under_its_name(name, text, message):
    with pytest.raises(SettingError, match=message) as caught:
        parse_run_options({name: text})
    assert caught.value.setting == name


def test_an_unknown_option_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no setting 'output_dir'"):
        make_job(tmp_path, options={"output_dir": Path("/")})


def test_validation_images_are_listed_by_step_with_their_prompts(tmp_path):
    job, folder = make_job(tmp_path, options=parse_run_options(TEXTS)), tmp_path / "dog"
    job.write(folder, job.config("base", DreamBoothConfig(), folder))
    prompts = ["a photo of a sks dog at night", "a red hat"]
    for step in (2, 10):
        for name in (*(image_name(prompt, 7) for prompt in prompts), "other-7.png"):
            write_file(folder / "validation" / f"step-{step}" / name, Image.new("RGB", (4, 4)).save)
    read = read_job("dog", folder)
    assert validation_steps(read) == [10, 2]
    assert [(image.step, image.prompt) for image in validation_images(read)] == [
        (step, prompt) for step in (10, 2) for prompt in (*prompts, "")
    ]
    assert [image.caption for image in validation_images(read, 2)][1:] == ["step 2 · a red hat", "step 2"]
