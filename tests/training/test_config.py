"""Settings: checked by their constructor, and equal after writing and reading TOML."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from hra_diffusion.cli.train import parse_config
from hra_diffusion.cli.train_control import parse_config as parse_control_config
from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config import AdapterConfig, ControlNetConfig, DreamBoothConfig, RunConfig
from hra_diffusion.training.config.defaults import make_config
from hra_diffusion.training.config.dependencies import unused_flags
from hra_diffusion.training.config.file import flag_types, flat_values, read_toml, to_toml, with_values

DEFAULT = DreamBoothConfig()
CHANGES = {
    "pretrained_model_name_or_path": "some/model",
    "instance_data_dir": Path("a folder") / "dog",
    "instance_prompt": 'a "quoted" sks dog \\ ü',
    "with_prior_preservation": True,
    "target_modules": ("to_q", "to_out.0"),
    "learning_rate": 3e-5,
    "lr_scheduler": "cosine",
    "max_train_steps": 7,
    "seed": 2**62,
}


def test_each_flag_belongs_to_one_group_only():
    names = [field.name for group in fields(DEFAULT) for field in fields(getattr(DEFAULT, group.name))]
    assert len(names) == len(set(names)) == len(flag_types(DreamBoothConfig))


def test_the_changes_of_these_tests_name_fields():
    assert CHANGES.keys() <= flag_types(DreamBoothConfig).keys()


@pytest.mark.parametrize("changes", [{}, CHANGES, *({name: value} for name, value in CHANGES.items())])
def test_a_config_equals_itself_after_writing_and_reading_toml(tmp_path, changes):
    config = with_values(DEFAULT, changes)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert read_toml(path, DEFAULT) == config


def test_keys_may_be_outside_of_a_table(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("rank = 4\n[run]\nseed = 5\n")
    config = read_toml(path, DEFAULT)
    assert (config.adapter, config.run) == (AdapterConfig(rank=4), RunConfig(seed=5))


@pytest.mark.parametrize(
    ("table", "key", "value"), [("optimiser", "learning_rate", 0.5), ("preview", "num_validation_images", 7)]
)
def test_tables_of_version_0_1_are_read_under_their_earlier_names(tmp_path, table, key, value):
    path = tmp_path / "config.toml"
    path.write_text(f"[{table}]\n{key} = {value}\n")
    assert read_toml(path, DEFAULT) == with_values(DEFAULT, {key: value})


def test_values_of_version_0_1_are_read_under_their_earlier_names(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[prior]\nprior_target = "picture"\n')
    assert read_toml(path, with_values(DEFAULT, {"prior_target": "base"})).prior.prior_target == "image"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("learnin_rate = 1.0", "did you mean 'learning_rate'"),
        ("[adapter]\nrankk = 1", "did you mean 'rank'"),
        ("[adaptr]\nrank = 1", r"unknown key 'adaptr': did you mean 'adapter'\?$"),
        ("[pairs]\nresolution = 8", "has pairs, which is of another kind of run"),
        ('annotator = "canny"', "has annotator, which is of another kind of run"),
        ('model = "sd"', r"has model = 'sd', but \[model\] is a table"),
        ("rank = 'eight'", "rank = 'eight': write a whole number"),
        ("rank = true", "write a whole number"),
        ("learning_rate = '1e-4'", "write a number"),
        ("train_text_encoder = 1", "write true or false"),
        ("target_modules = 'to_q'", "write a list of texts"),
        ("lr_scheduler = 'cosin'", "write one of constant, "),
        ("rank = 0", "--rank is 0: give a number at least 1"),
        ("rank = ", "not valid TOML"),
    ],
)
def test_a_toml_file_with_a_mistake_is_refused_by_name(tmp_path, text, complaint):
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_toml(path, DEFAULT)


def test_a_missing_toml_file_is_reported(tmp_path):
    with pytest.raises(ConfigError, match=r"nix\.toml cannot be read"):
        read_toml(tmp_path / "nix.toml", DEFAULT)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rank", 0),
        ("rank", -2),
        ("resolution", 0),
        ("train_batch_size", 0),
        ("max_train_steps", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("prior_loss_weight", -1.0),
        ("adam_beta2", 1.0),
        ("seed", -1),
        ("seed", 2**63),
        ("target_modules", ()),
        ("instance_prompt", " "),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_flag(name, value):
    with pytest.raises(ConfigError, match=f"--{name} is "):
        with_values(DEFAULT, {name: value})


CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.toml"))


def test_there_is_a_config_for_each_common_case():
    usual = ["control-flux2-klein-16gb", "embedded", "embedded_control", "face", "style"]
    models = [
        "chroma-16gb",
        "flux1-dev-16gb",
        "flux2-dev-24gb",
        "flux2-klein-16gb",
        "qwen-image-24gb",
        "sd15-8gb",
        "sd35-medium-12gb",
        "sdxl-12gb",
        "z-image-24gb",
    ]
    assert [path.stem for path in CONFIGS] == [*usual, *(f"subject-{model}" for model in models)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_project_is_valid_and_differs_from_the_default(path):
    default = ControlNetConfig() if "control" in path.stem else DEFAULT
    config = read_toml(path, default)
    assert config != default
    assert config.model.pretrained_model_name_or_path
    assert config.adapter.rank % 2 == 0
    if not path.stem.startswith("embedded"):
        assert "not measured" in path.read_text(encoding="utf-8").lower()


def test_epochs_override_steps_and_datasets_override_folders(tmp_path, monkeypatch):
    file = tmp_path / "run.toml"
    file.write_text("max_train_steps = 300\nnum_train_epochs = 2\n")
    flags = ["--config", str(file)]
    assert parse_config(flags).run.max_train_steps == 300  # both in one file: steps override epochs
    assert parse_config([*flags, "--num_train_epochs", "3"]).run.max_train_steps is None
    assert parse_config([*flags, "--num_train_epochs=3", "--max-train-steps", "9"]).run.max_train_steps == 9
    assert parse_config([]).run.max_train_steps
    assert parse_config(["--num_train_epochs", "3"]).run.max_train_steps is None  # over the embedded defaults
    assert parse_config(["--num_train_epochs", "None"]).run.max_train_steps
    file.write_text("num_train_epochs = 2\n")
    assert parse_config(flags).run.max_train_steps is None
    pairs = parse_control_config(["--dataset_name", "scenes"]).pairs
    assert (pairs.dataset_name, pairs.train_data_dir) == ("scenes", None)
    file.write_text('dataset_name = "scenes"\n')
    assert parse_control_config(flags).pairs.train_data_dir is None
    assert parse_control_config([*flags, "--train_data_dir", "mine"]).pairs.dataset_name is None


@pytest.mark.parametrize(
    ("name", "requirement"),
    [
        ("num_class_images", {"with_prior_preservation": True}),
        ("initializer_concept", {"train_text_encoder_ti": True}),
        ("text_encoder_target_modules", {"train_text_encoder": True}),
        ("text_encoder_lr", {"train_text_encoder": True}),
        ("text_encoder_lr", {"train_text_encoder_ti": True}),
        ("unmasked_weight", {"alpha_mask": True}),
        ("unmasked_weight", {"mask_data_dir": Path("masks")}),
        ("ema_decay", {"use_ema": True}),
        ("mode_scale", {"timestep_sampling": "mode"}),
    ],
)
def test_a_flag_without_effect_is_reported_with_the_flag_that_it_needs(name, requirement):
    (sentence,) = unused_flags(flat_values(DEFAULT), [name, "seed"])
    assert sentence.startswith(f"--{name} has no effect without --")
    assert next(iter(requirement)) in sentence
    assert not list(unused_flags(flat_values(with_values(DEFAULT, requirement)), [name, "seed"]))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("logit_mean", {"timestep_sampling": "uniform"}),
        ("adam_beta1", {"optimizer": "lion"}),
        ("learning_rate", {"optimizer": "prodigy"}),
    ],
)
def test_a_flag_without_effect_beside_another_setting_is_reported(name, other):
    assert not list(unused_flags(flat_values(DEFAULT), [name]))
    (sentence,) = unused_flags(flat_values(with_values(DEFAULT, other)), [name])
    assert sentence.startswith(f"--{name} has no effect without ")


def test_settings_in_python_are_those_of_the_command_line():
    flags = ["--rank", "4", "--instance_data_dir", "photos", "--target_modules", "a", "b"]
    made = make_config(DreamBoothConfig, rank=4, instance_data_dir="photos", target_modules=["a", "b"])
    assert made == parse_config(flags)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"ranc": 4}, "Unknown setting 'ranc': did you mean 'rank'?"),
        ({"rank": "4"}, "rank = '4': write a whole number"),
    ],
)
def test_settings_in_python_are_checked_by_name_and_type(settings, complaint):
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        make_config(DreamBoothConfig, **settings)
