import dataclasses

import pytest
from peft import HRAConfig as PeftHRAConfig

from hra_diffusion import HRAConfig
from hra_diffusion.errors import ConfigError


def test_settings_have_the_names_and_defaults_of_pefts():
    theirs = {f.name: f for f in dataclasses.fields(PeftHRAConfig)}
    mine = {f.name: f for f in dataclasses.fields(HRAConfig)}
    assert theirs.keys() - mine.keys() == {"peft_type", "auto_mapping", "peft_version"}
    for name in theirs.keys() & mine.keys():
        assert mine[name].default == theirs[name].default


def test_the_configuration_file_round_trips():
    config = HRAConfig(r=6, target_modules=["a", "b"], layers_to_transform=[0, 2], layers_pattern="h", bias="all")
    assert HRAConfig.from_peft(config.to_peft()) == config


def test_peft_and_this_project_read_each_others_settings(tmp_path):
    mine = HRAConfig(r=6, target_modules=("a", "b"), modules_to_save=("c",), exclude_modules="x.*", apply_GS=True)
    theirs = PeftHRAConfig.from_peft_type(**mine.to_peft())
    assert (theirs.r, theirs.target_modules, theirs.modules_to_save) == (6, {"a", "b"}, ["c"])
    theirs.save_pretrained(tmp_path)
    again = HRAConfig.from_peft(PeftHRAConfig.from_json_file(tmp_path / "adapter_config.json"))
    assert set(again.target_modules) == {"a", "b"}  # PEFT keeps a set, in no order
    assert dataclasses.replace(again, target_modules=mine.target_modules) == mine


@pytest.mark.parametrize("r", [0, -2, 1.5, True, "8"])
def test_a_rank_other_than_a_positive_whole_number_is_refused(r):
    with pytest.raises(ConfigError, match=r"rank r must be a whole number of at least 1.*found"):
        HRAConfig(r=r)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bias": "lora_only"}, "bias must be one of none, all, hra_only; found 'lora_only'"),
        ({"apply_GS": "false"}, "apply_GS must be true or false; found 'false'"),
        ({"init_weights": None}, "init_weights must be true or false; found None"),
        ({"target_modules": 5}, "target_modules must be a list of names, or a regular expression; found 5"),
        ({"exclude_modules": [None]}, "exclude_modules must be a list of names, or a regular expression"),
        ({"target_modules": "(q"}, r"target_modules is '\(q', which is no regular expression: missing \)"),
        ({"target_modules": ["q"], "layers_to_transform": ["1"]}, "layers_to_transform must be indices of layers"),
        ({"target_modules": "q", "layers_to_transform": 1}, "layers_to_transform needs target_modules to be a list"),
        ({"target_modules": ["q"], "layers_pattern": "h"}, "give layers_to_transform, too"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        HRAConfig(**settings)


def test_the_configuration_of_another_adapter_type_is_refused():
    with pytest.raises(ConfigError, match="peft_type is 'LORA'"):
        HRAConfig.from_peft({"peft_type": "LORA", "r": 8})


def test_a_setting_of_a_newer_peft_is_ignored_with_a_warning():
    with pytest.warns(UserWarning, match="ignored: brand_new"):
        assert HRAConfig.from_peft({"peft_type": "HRA", "r": 4, "brand_new": 1}).r == 4
