"""The validation loss: on images that are not trained on, always with the same noise and timesteps."""

import json
import shutil

import pytest
import torch

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config.file import with_values
from hra_diffusion.training.data.held_out import split_examples
from hra_diffusion.training.data.inventory import HELD_OUT
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.loop.validation_loss import POSITIONS
from hra_diffusion.training.prepare import prepare_run

SETTINGS = {
    "with_prior_preservation": False,
    "instance_prompt": "a photo of a sks dog",
    "learning_rate": 0.5,
    "checkpointing_steps": 2,
    "report_to": "none",
}


@pytest.fixture
def subject(config, images):
    """Settings of a run whose subject has two held-out images."""
    (images / HELD_OUT).mkdir()
    for path in sorted(images.glob("*.*"))[:2]:
        shutil.copy(path, images / HELD_OUT)
    return with_values(config, SETTINGS)


def log_of(run) -> list[dict]:
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


def trained(config, tmp_path, name, stop_after=None, **values):
    run = prepare_run(DreamBooth(with_values(config, {"output_dir": tmp_path / name, **values})))
    for record in run.steps():
        if record.step == stop_after:
            break
    return run


@pytest.mark.slow
def test_it_is_logged_every_few_steps_and_training_is_the_same_without_it(subject, tmp_path):
    without = log_of(trained(subject, tmp_path, "without"))
    run = trained(subject, tmp_path, "with", validate_every_n_steps=2)
    with_it = log_of(run)
    assert [line["step"] for line in with_it if "validation_loss" in line] == [2, 4]
    for line in with_it:
        line.pop("validation_loss", None)
    assert with_it == without
    assert run.start().trainer.validation_loss._examples == 2 * len(POSITIONS)


@pytest.mark.slow
def test_a_resumed_run_logs_the_same_losses_bit_for_bit(subject, tmp_path):
    settings = {"validate_every_n_steps": 2, "caption_dropout_rate": 0.5, "loss_type": "huber", "resolution": (32, 64)}
    whole = log_of(trained(subject, tmp_path, "whole", **settings))
    trained(subject, tmp_path, "stopped", stop_after=3, **settings)
    resumed = trained(subject, tmp_path, "stopped", resume_from_checkpoint="latest", **settings)
    assert log_of(resumed) == whole
    assert [line["step"] for line in whole] == [1, 2, 3, 4]


def test_the_same_weights_have_the_same_loss_and_other_weights_another(subject, tmp_path):
    trainer = trained(subject, tmp_path, "run", stop_after=1, validate_every_n_steps=2).start().trainer
    cpu = torch.device("cpu")
    first, second = (trainer.validation_loss.mean_loss(trainer.loss, cpu) for _ in range(2))
    assert torch.equal(first, second)
    next(trainer.steps(2))
    assert not torch.equal(trainer.validation_loss.mean_loss(trainer.loss, cpu), first)


@pytest.mark.slow
def test_it_is_that_of_the_average_where_the_average_is_saved(subject, tmp_path):
    run = trained(subject, tmp_path, "run", use_ema=True, validate_every_n_steps=4)
    trainer = run.start().trainer
    with trainer.inference_weights():
        expected = trainer.validation_loss.mean_loss(trainer.loss, torch.device("cpu")).item()
    assert log_of(run)[-1]["validation_loss"] == expected
    assert trainer.validation_loss.mean_loss(trainer.loss, torch.device("cpu")).item() != expected


def test_a_split_is_held_out_of_training(config, tmp_path):
    task = DreamBooth(with_values(config, {**SETTINGS, "validation_split": 0.25}))
    run = prepare_run(task)
    names = [{example.photo.path.name for example in examples} for examples in (task.examples, task.held_out)]
    assert [len(group) for group in names] == [3, 1]
    assert not names[0] & names[1]
    assert len(run.start().trainer.batch_at.__self__.sources[0].latents) == 3
    assert run.start().trainer.validation_loss.every == 25
    assert len(task.digests()) == 3


def test_splits_are_chosen_by_the_seed_and_leave_an_image(config):
    task = DreamBooth(with_values(config, SETTINGS))
    prepare_run(task)
    splits = {seed: split_examples(task.examples, 0.5, seed) for seed in range(8)}
    assert all(sorted(map(len, split)) == [2, 2] for split in splits.values())
    assert len({tuple(example.photo.path.name for example in held) for _, held in splits.values()}) > 1
    assert split_examples(task.examples, 0.5, 3) == splits[3]
    assert [len(part) for part in split_examples(task.examples, 0.01, 0)] == [3, 1]
    with pytest.raises(
        ConfigError, match=r"--validation_split 0.9 holds out 4 of 4 images of .*dog, which leaves none"
    ):
        split_examples(task.examples, 0.9, 0)


def test_a_validation_loss_without_held_out_images_is_refused(config):
    with pytest.raises(
        ConfigError, match=r"--validate_every_n_steps needs held-out images, and .*dog has no sub-folder"
    ):
        prepare_run(DreamBooth(with_values(config, {**SETTINGS, "validate_every_n_steps": 2})))


def test_every_image_occurs_in_each_resolution_and_a_batch_has_one(config):
    task = DreamBooth(with_values(config, {**SETTINGS, "resolution": (64, 32)}))
    run = prepare_run(task)
    assert run.config.data.resolution == (32, 64)
    assert task.resolution == 64
    assert task.sizes == [(32, 32)] * 4 + [(64, 64)] * 4
    assert "4 images of 32 and 64 px" in run.summary
    batches = [run.start().trainer.batch_at(index).inputs["latents"] for index in range(8)]
    assert sorted(batch.shape[-1] for batch in batches) == [8] * 4 + [16] * 4


def test_an_epoch_has_each_image_in_each_resolution(config):
    values = {**SETTINGS, "resolution": (32, 64), "num_train_epochs": 3, "max_train_steps": None}
    assert prepare_run(DreamBooth(with_values(config, values))).plan.total_steps == 3 * 8 / 2
