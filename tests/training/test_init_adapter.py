"""--init_adapter: a new run that starts with the weights of an existing adapter."""

import logging

import pytest
import torch

from hra_diffusion.errors import AdapterFileError, ConfigError
from hra_diffusion.pipelines import generate_image, load_hra_weights, load_pipeline
from hra_diffusion.training.config import DreamBoothConfig
from hra_diffusion.training.config.defaults import make_config
from hra_diffusion.training.config.file import read_run, with_values
from hra_diffusion.training.controlnet import ControlNet
from hra_diffusion.training.dreambooth import DreamBooth
from hra_diffusion.training.prepare import prepare_run


@pytest.fixture
def first(config):
    """The settings of a finished run of rank 4."""
    config = with_values(config, {"rank": 4, "with_prior_preservation": False, "max_train_steps": 2})
    run = prepare_run(DreamBooth(config))
    list(run.steps())
    run.save()
    return config


def second(first, tmp_path, **settings):
    names = ("pretrained_model_name_or_path", "instance_data_dir", "num_inference_steps", "num_validation_images")
    values = vars(first.model) | vars(first.data) | vars(first.validation)
    start = {"init_adapter": first.run.output_dir, "output_dir": tmp_path / "second", "max_train_steps": 2}
    return make_config(DreamBoothConfig, **{name: values[name] for name in names}, **start | settings)


def test_the_first_images_equal_those_of_generate_with_the_adapter(first, tmp_path, caplog):
    config = second(first, tmp_path)
    assert (config.adapter.rank, config.adapter.train_text_encoder) == (4, True)
    assert "--rank is 4, as in the adapter" in caplog.text
    run = prepare_run(DreamBooth(config))
    options = {"height": 32, "width": 32, "num_inference_steps": 2}
    pipe = load_pipeline(str(config.model.pretrained_model_name_or_path))
    base = generate_image(pipe, "a sks dog", 0, **options)
    load_hra_weights(pipe, first.run.output_dir)
    image = generate_image(pipe, "a sks dog", 0, **options)
    assert generate_image(run.pipe, "a sks dog", 0, **options) == image != base


def test_all_its_columns_train_and_it_is_recorded(first, tmp_path):
    run = prepare_run(DreamBooth(second(first, tmp_path)))
    before = {name: weight.clone() for name, weight in run.pipe.unet.named_parameters() if weight.requires_grad}
    list(run.steps())
    after = dict(run.pipe.unet.named_parameters())
    assert before
    assert not any(torch.equal(weight, after[name]) for name, weight in before.items())
    recorded = read_run(run.save(), DreamBoothConfig())
    assert recorded.adapter.init_adapter == str(first.run.output_dir)


def test_another_rank_or_an_excluded_component_is_refused_by_name(first, tmp_path):
    for name, value in {"rank": 8, "target_modules": ["to_q"], "train_text_encoder": False}.items():
        with pytest.raises(ConfigError, match=rf"--{name} is .*, but the adapter .* has .*--init_adapter"):
            second(first, tmp_path, **{name: value})
    assert second(first, tmp_path, rank=4).adapter.rank == 4


def test_a_folder_without_an_adapter_is_refused(first, tmp_path):
    with pytest.raises(AdapterFileError, match="There is no adapter in"):
        second(first, tmp_path, init_adapter=tmp_path)


def test_a_run_resumes_only_with_the_same_adapter(first, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    config = second(first, tmp_path)
    list(prepare_run(DreamBooth(config)).steps())
    longer = with_values(config, {"max_train_steps": 3, "resume_from_checkpoint": "latest"})
    moved = with_values(longer, {"init_adapter": str(first.run.output_dir / "adapter")})
    assert prepare_run(DreamBooth(moved)).plan.initial_global_step == 2
    other = with_values(longer, {"init_adapter": str(config.run.output_dir / "checkpoint-2" / "adapter")})
    with pytest.raises(ConfigError, match="--init_adapter was "):
        prepare_run(DreamBooth(other))


def test_a_control_starts_from_a_control_with_its_encoder(control_config, tmp_path):
    run = prepare_run(ControlNet(control_config))
    list(run.steps())
    folder = run.save()
    start = {"init_adapter": str(folder), "output_dir": tmp_path / "second"}
    config = with_values(control_config, start)
    again = prepare_run(ControlNet(config))
    for name, module in run.trained_modules.items():
        weights = dict(again.trained_modules[name].named_parameters())
        for key, weight in module.named_parameters():
            assert torch.equal(weight, weights[key])
            assert weights[key].requires_grad == weight.requires_grad
    list(again.steps())


def test_a_control_is_no_start_of_a_subject(config, control_config, tmp_path):
    run = prepare_run(ControlNet(with_values(control_config, {"max_train_steps": 1})))
    list(run.steps())
    start = {"init_adapter": str(run.save()), "output_dir": tmp_path / "second"}
    with pytest.raises(ConfigError, match="is a control: start from it with train-control"):
        prepare_run(DreamBooth(with_values(config, start)))
