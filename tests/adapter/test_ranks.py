"""Ranks by layer, with PEFT's meaning of rank_pattern."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model

from hra_diffusion import HRAConfig
from hra_diffusion.errors import AdapterFileError, ConfigError, TargetError
from hra_diffusion.model import HRAModel
from tests.models import Net

PATTERNS = [{"q": 2}, {"blocks.1.q": 6}, {r"blocks\.[01]\.(q|v)": 2}, {"1.q": 2, "q": 6}, {".*out": 2}]


def ranks(model):
    return {name: layer.columns["default"].shape[1] for name, layer in model.adapted_layers().items()}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_layer_has_the_rank_that_peft_gives_its_lora(pattern):
    targets = ["q", "v", "out"]
    lora = get_peft_model(Net(), LoraConfig(r=4, rank_pattern=pattern, target_modules=targets)).base_model.model
    expected = {
        name.removesuffix(".lora_A.default"): len(module.weight)
        for name, module in lora.named_modules()
        if name.endswith(".lora_A.default")
    }
    assert ranks(HRAModel(Net(), HRAConfig(r=4, rank_pattern=pattern, target_modules=targets))) == expected
    assert len(set(expected.values())) > 1


@pytest.mark.parametrize("settings", [{}, {"apply_GS": True}])
def test_a_saved_adapter_is_loaded_with_its_ranks(settings, tmp_path):
    model = HRAModel(Net(), HRAConfig(r=4, rank_pattern={"q": 2}, target_modules=["q", "v"], **settings))
    with torch.no_grad():
        for name, columns in model.named_parameters():
            if "hra_u" in name:
                columns.add_(torch.randn_like(columns))
    x = torch.randn(3, 12)
    expected = model(x)
    model.save_pretrained(tmp_path)
    factor = 2 if settings else 1
    assert json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"] == {"q": 2 * factor}
    loaded = HRAModel.from_pretrained(model.unload(), tmp_path)
    assert torch.allclose(loaded(x), expected, atol=1e-6)
    loaded.set_strength(0.5)
    loaded.merge_adapter()
    assert set(ranks(loaded).values()) == {2 * factor, 4 * factor}


def test_an_adapter_is_swapped_for_one_whose_ranks_fit():
    def make(**settings):
        torch.manual_seed(0)
        return HRAModel(Net(), HRAConfig(target_modules=["q", "v"], **settings))

    narrow, wide = make(r=4, rank_pattern={"q": 2}), make(r=2, rank_pattern={"q": 4})
    with pytest.raises(AdapterFileError, match="its rank is 4 of at most 2"):
        narrow.swap_adapter(*wide.adapter_state_dict())
    padded = make(r=2)
    padded.pad_adapter(4)
    padded.swap_adapter(*narrow.adapter_state_dict())
    assert torch.allclose(padded(x := torch.randn(3, 12)), narrow(x), atol=1e-6)
    with pytest.raises(ConfigError, match="has rank 4"):
        narrow.pad_adapter(2)


def test_wrong_patterns_are_named():
    with pytest.raises(TargetError, match=r"rank_pattern has 'qq'.*blocks"):
        HRAModel(Net(), HRAConfig(rank_pattern={"qq": 2, "v": 2}, target_modules=["q", "v"]))
    for pattern, reason in [
        ({"q": 0}, "rank of 'q'"),
        ({"q": True}, "rank of 'q'"),
        ({"(": 2}, "pattern"),
        ([], "table"),
    ]:
        with pytest.raises(ConfigError, match=reason):
            HRAConfig(rank_pattern=pattern)
    with pytest.warns(UserWarning, match="r = 3 is odd"):
        model = HRAModel(Net(), HRAConfig(r=4, rank_pattern={"q": 3}, target_modules=["q", "v"]))
    with pytest.raises(ConfigError, match="odd rank 3"):
        model.set_strength(0.5)


def test_ranks_do_not_change_under_a_model():
    given = {"q": 4}
    config = HRAConfig(r=2, rank_pattern=given, target_modules=["q"])
    given["q"] = 8
    for change in (lambda ranks: ranks.update(q=6), lambda ranks: ranks.clear(), lambda ranks: ranks.pop("q")):
        with pytest.raises(ConfigError, match="cannot be changed in place"):
            change(config.rank_pattern)
    assert config.rank_pattern == {"q": 4}
    assert copy.deepcopy(config) == config
    config.rank_pattern = {"q": 6}
    assert config.rank_of("blocks.0.q") == 6
