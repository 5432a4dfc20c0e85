"""Checkpoints: a resumed run equals an uninterrupted one, and other runs' checkpoints are refused."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.training.config import ControlNetConfig, DreamBoothConfig
from hra_diffusion.training.config.defaults import complete_settings
from hra_diffusion.training.config.file import flag_types, with_values
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.outputs.checkpoint import REST, checkpoints
from hra_diffusion.training.outputs.log import read_log
from hra_diffusion.training.outputs.resuming import FREE, FREE_WITHOUT_PRIOR, check_fingerprint
from hra_diffusion.training.prepare import prepare_run
from tests.accelerate_state import reset_accelerate


@pytest.fixture
def config(config):
    """Five steps of two small batches, with a schedule that changes the learning rate at every step."""
    values = {
        "with_prior_preservation": False,
        "train_text_encoder": False,
        "max_train_steps": 5,
        "checkpointing_steps": 2,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 2,
        "random_flip": True,
    }
    return with_values(config, values)


def train(config: DreamBoothConfig, stop_after: int | None = None, **changes) -> Path:
    """Run to the end, or save after a step and stop; returns the run's folder."""
    reset_accelerate()
    run = prepare_run(DreamBooth(with_values(config, changes)))
    for record in run.steps():
        if record.step == stop_after:
            run.save_checkpoint()
            return run.folder
    run.save()
    return run.folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


@pytest.mark.parametrize(
    ("stop_after", "changes"),
    [(1, {}), (2, {}), (3, {"train_text_encoder_ti": True, "instance_prompt": "a <sks> dog", "use_ema": True})],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(config, tmp_path, stop_after, changes):
    whole = train(config, **changes)
    stopped = train(config, stop_after, output_dir=tmp_path / "stopped", **changes)
    torch.manual_seed(stop_after)
    train(config, output_dir=stopped, resume_from_checkpoint="latest", **changes)
    for part in ("adapter", "checkpoint-5"):
        assert contents(stopped / part) == contents(whole / part)
    assert {"log.jsonl", "training_state.safetensors"} <= contents(whole / "checkpoint-5").keys()
    for name in ("log.jsonl", "checkpoint-4/training_state.safetensors"):
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    assert names(whole) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize("optimizer", ["schedule_free", "prodigy", "lion", "adafactor"])
def test_a_run_resumes_bit_for_bit_with_every_optimizer(config, tmp_path, optimizer):
    changes = {"optimizer": optimizer, "max_train_steps": 4, "lr_scheduler": "constant", "lr_warmup_steps": 0}
    whole = train(config, **changes)
    stopped = train(config, 1, output_dir=tmp_path / "stopped", **changes)
    train(config, output_dir=stopped, resume_from_checkpoint="latest", **changes)
    for part in ("adapter", "checkpoint-2", "checkpoint-4"):
        assert contents(stopped / part) == contents(whole / part)


def test_the_number_of_steps_may_grow(config, tmp_path):
    whole = train(config, lr_scheduler="constant")
    longer = train(config, lr_scheduler="constant", max_train_steps=3, output_dir=tmp_path / "longer")
    train(config, lr_scheduler="constant", output_dir=longer, resume_from_checkpoint="latest")
    assert contents(longer / "adapter") == contents(whole / "adapter")
    assert contents(longer / "checkpoint-5") == contents(whole / "checkpoint-5")


def test_a_resumed_longer_run_uses_its_own_schedule_and_warns(config, tmp_path, caplog):
    stopped = train(config, max_train_steps=3, output_dir=tmp_path / "stopped")
    with caplog.at_level(logging.WARNING):
        train(config, output_dir=stopped, resume_from_checkpoint="latest")
    assert "the steps so far had other rates than in a run with the new number of steps from the start" in caplog.text
    longer, whole = (read_log(folder / "log.jsonl") for folder in (stopped, train(config)))
    assert [record.learning_rates for record in longer[3:]] == [record.learning_rates for record in whole[3:]]


def test_resuming_a_finished_run_saves_the_same_files(config):
    folder = train(config, checkpointing_steps=5)
    before = contents(folder)
    (folder / "adapter" / "unet" / "adapter_model.safetensors").unlink()
    train(config, checkpointing_steps=5, resume_from_checkpoint="latest")
    assert contents(folder) == before


def test_a_checkpoint_may_be_named_by_path_by_name_or_by_its_run(config, tmp_path):
    folder = train(config, max_train_steps=4)
    for wanted, name in ((folder / "checkpoint-2", "checkpoint-2"), ("checkpoint-2",) * 2, (folder, "checkpoint-4")):
        assert (
            prepare_run(DreamBooth(with_values(config, {"resume_from_checkpoint": str(wanted)}))).plan.checkpoint
            == folder / name
        )
    with pytest.raises(AdapterFileError, match="no checkpoint checkpoint-3"):
        prepare_run(DreamBooth(with_values(config, {"resume_from_checkpoint": "checkpoint-3"})))


def test_latest_without_a_checkpoint_starts_a_new_run_and_warns(config, caplog):
    with caplog.at_level(logging.WARNING):
        folder = train(config, resume_from_checkpoint="latest", max_train_steps=1)
    assert "no checkpoint" in caplog.text
    assert "starting a new run" in caplog.text
    assert names(folder) == ["checkpoint-1"]


def test_the_newest_checkpoints_are_kept(config):
    assert names(train(config, checkpointing_steps=1, checkpoints_total_limit=2)) == ["checkpoint-4", "checkpoint-5"]


def test_the_checkpoint_just_saved_is_kept_beside_later_ones(config):
    folder = train(config, checkpointing_steps=1)
    train(config, 2, resume_from_checkpoint="checkpoint-1", checkpoints_total_limit=2)
    assert names(folder) == ["checkpoint-2", "checkpoint-5"]


def test_a_constant_rate_may_have_a_warm_up(config):
    log = read_log(train(config, lr_scheduler="constant", max_train_steps=4) / "log.jsonl")
    assert [record.learning_rates["unet"] for record in log] == pytest.approx([0, 0.01, 0.02, 0.02])


def test_another_runs_checkpoints_are_announced_and_replaced(config, caplog):
    train(config, checkpointing_steps=1)
    with caplog.at_level(logging.WARNING):
        folder = train(config, seed=1, max_train_steps=2)
    assert "checkpoint-5 is of an earlier run" in caplog.text
    assert names(folder) == ["checkpoint-2"]
    assert names(train(config, seed=1, max_train_steps=4)) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"learning_rate": 0.5}, "another run .--learning_rate was 0.02 and is 0.5"),
        ({"rank": 2, "seed": 1}, "--rank was 8 and is 2; --seed was 0 and is 1"),
        ({"instance_prompt": "a sks cat"}, "--instance_prompt was a photo of a sks dog and is a sks cat"),
        ({"target_modules": ("to_q",)}, "--target_modules was "),
        ({"train_batch_size": 2}, "train_batch_size on all devices was 1 and is 2"),
        ({"max_train_steps": 1}, "is of step 2, and --max_train_steps is 1: set it to 2 or more"),
    ],
)
def test_resuming_with_other_settings_is_refused_by_name(config, changes, complaint):
    train(config, max_train_steps=2)
    with pytest.raises(ConfigError, match=complaint):
        prepare_run(DreamBooth(with_values(config, {"resume_from_checkpoint": "latest", **changes})))


def test_resuming_with_other_images_or_another_model_is_refused(config, images, make_model, tmp_path):
    train(config, max_train_steps=2)
    resuming = with_values(config, {"resume_from_checkpoint": "latest"})
    Image.new("RGB", (40, 40), "red").save(images / "0.png")
    Image.new("RGB", (40, 40), "red").save(images / "9.png")
    with pytest.raises(ConfigError, match=r"other images or captions: instance 0\.png, instance 9\.png"):
        prepare_run(DreamBooth(resuming))
    other = str(make_model(tmp_path / "other", seed=1))
    with pytest.raises(ConfigError, match="another base model"):
        prepare_run(DreamBooth(with_values(resuming, {"pretrained_model_name_or_path": other})))


def test_resuming_with_another_class_is_refused(config, images, tmp_path):
    user_images = tmp_path / "own"
    user_images.mkdir()
    Image.new("RGB", (40, 40), "blue").save(user_images / "own.png")
    prior = {
        "with_prior_preservation": True,
        "num_class_images": 1,
        "class_data_dir": user_images,
        "class_prompt": None,
    }
    (tmp_path / "pets").mkdir()
    pets = {**prior, "instance_data_dir": tmp_path / "pets", "instance_prompt": None}
    for name in ("dog", "cat"):
        shutil.copytree(images, tmp_path / "pets" / name)
        (user_images / name).mkdir()
        shutil.copy(user_images / "own.png", user_images / name)
    train(config, max_train_steps=2, **pets)
    resuming = with_values(config, {"resume_from_checkpoint": "latest", **pets})
    prepare_run(DreamBooth(resuming))
    (user_images / "dog" / "own.txt").write_text("a blue dog")
    with pytest.raises(ConfigError, match=r"other images or captions: class a photo of a dog own\.png"):
        prepare_run(DreamBooth(resuming))
    (user_images / "dog" / "own.txt").unlink()
    prompts = 'instance_prompt = "a photo of a sks dog"\nclass_prompt = "an animal on the moon"'
    (tmp_path / "pets" / "dog" / "subject.toml").write_text(prompts)
    with pytest.raises(
        ConfigError, match=r"other images or captions: class a photo of a dog, .*class an animal on the"
    ):
        prepare_run(DreamBooth(resuming))


def test_a_new_run_removes_the_images_and_measurements_of_the_previous_one(config):
    folder = train(config, max_train_steps=2)
    results = ["metrics.json", "metrics.md", "metrics.png", "before_after.png"]
    for name in (*results, "validation/step-2/a.png", "validation/mine.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    run = prepare_run(DreamBooth(with_values(config, {"resume_from_checkpoint": "latest"})))
    next(run.steps())
    assert (folder / "metrics.json").exists()
    run.save()
    assert not any((folder / name).exists() for name in results)  # of the previous adapter
    assert (folder / "validation" / "step-2").exists()
    reset_accelerate()
    next(prepare_run(DreamBooth(config)).steps())
    assert [path.name for path in (folder / "validation").iterdir()] == ["mine.png"]


def test_files_of_no_previous_run_are_kept(config):
    mine = config.run.output_dir / "metrics.png", config.run.output_dir / "validation" / "step-1" / "mine.png"
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    train(config, max_train_steps=1)
    assert all(path.exists() for path in mine)


def test_a_moved_run_resumes_in_place_with_its_own_settings(config, tmp_path, caplog):
    folder = train(config, stop_after=2)
    moved = folder.rename(tmp_path / "elsewhere")
    flags = {"config": moved / "config.toml", "resume_from_checkpoint": "latest"}
    resumed = complete_settings(DreamBoothConfig, flags)
    assert resumed.run.output_dir == moved
    assert f"the run resumes in {moved}, where it lies now, and not in {folder}" in caplog.text
    train(resumed)
    assert not folder.exists()
    assert names(moved) == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]


def test_only_a_run_that_resumes_uses_the_folder_of_its_settings(config, tmp_path):
    folder = train(config, stop_after=2)
    shutil.copytree(folder, tmp_path / "copy")
    start = {"config": tmp_path / "copy" / "config.toml"}
    assert complete_settings(DreamBoothConfig, start).run.output_dir == folder
    named = start | {"resume_from_checkpoint": "latest", "output_dir": tmp_path / "other"}
    assert complete_settings(DreamBoothConfig, named).run.output_dir == tmp_path / "other"
    (tmp_path / "copy" / "log.jsonl").unlink()
    resumed = complete_settings(DreamBoothConfig, start | {"resume_from_checkpoint": "latest"})
    assert resumed.run.output_dir == folder


def test_folders_may_move(config, images, tiny_sd, tmp_path):
    train(config, max_train_steps=2)
    moved = {
        "instance_data_dir": images.rename(tmp_path / "cat"),
        "output_dir": (tmp_path / "run").rename(tmp_path / "moved"),
        "instance_prompt": "a photo of a sks dog",
        "class_prompt": "a photo of a dog",
    }
    run = prepare_run(DreamBooth(with_values(config, {"resume_from_checkpoint": "latest", **moved})))
    assert [record.step for record in run.steps()] == [3, 4, 5]


@pytest.mark.parametrize("name", ["training_state.safetensors", "training_state.json"])
def test_a_damaged_checkpoint_is_refused_by_name(config, name):
    path = train(config, max_train_steps=2) / "checkpoint-2" / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterFileError, match=name):
        list(prepare_run(DreamBooth(with_values(config, {"resume_from_checkpoint": "latest"}))).steps())


def test_a_checkpoint_with_an_incomplete_fingerprint_is_damaged(config):
    path = train(config, max_train_steps=2) / "checkpoint-2" / "training_state.json"
    rest = json.loads(path.read_text())
    del rest["identity"]["pictures"]
    path.write_text(json.dumps(rest))
    with pytest.raises(AdapterFileError, match="is damaged: it lacks its images"):
        prepare_run(DreamBooth(with_values(config, {"resume_from_checkpoint": "latest"})))


def test_every_free_setting_exists():
    assert (flag_types(DreamBoothConfig) | flag_types(ControlNetConfig)).keys() >= FREE | FREE_WITHOUT_PRIOR


def test_settings_of_class_images_are_free_without_prior_preservation_only(config):
    train(config, max_train_steps=1)
    resuming = with_values(config, {"resume_from_checkpoint": "latest", "num_inference_steps": 3})
    assert prepare_run(DreamBooth(resuming)).plan.checkpoint
    with pytest.raises(ConfigError, match="--with_prior_preservation was False and is True"):
        prepare_run(DreamBooth(with_values(resuming, {"with_prior_preservation": True})))


def test_a_foreign_checkpoint_folder_is_ignored_and_kept(config, tmp_path):
    foreign = tmp_path / "run" / "checkpoint-900"
    foreign.mkdir(parents=True)
    (foreign / "optimizer.bin").write_bytes(b"another trainer's")
    folder = train(config, max_train_steps=2, checkpoints_total_limit=1, resume_from_checkpoint="latest")
    assert names(folder) == ["checkpoint-2"]
    assert (foreign / "optimizer.bin").exists()


def test_a_checkpoint_with_the_words_of_version_0_1_resumes(tmp_path):
    settings = {"prior_target": "image", "rank": 2}
    fingerprint = {"settings": settings, "pictures": {}, "model": "m"}
    saved = fingerprint | {"settings": settings | {"prior_target": "picture"}}
    (tmp_path / REST).write_text(json.dumps({"step": 1, "identity": saved, "rest": {}}))
    check_fingerprint(tmp_path, fingerprint, 2)
