import pytest
import torch
from peft import HRAConfig as PeftHRAConfig
from peft import get_peft_model
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hra_diffusion import HRAConfig
from hra_diffusion.adapter.targets import ARCHITECTURE_TARGETS, check_target_names, find_targets
from hra_diffusion.errors import TargetError


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q", "v"]},
        {"target_modules": ["blocks.0.q", "head"]},
        {"target_modules": r".*blocks\.\d\.(q|out)"},
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "exclude_modules": ["q", "blocks.1.v"]},
        {"target_modules": ["q", "v"], "exclude_modules": r"0\.blocks\.0\..*"},
        {"target_modules": ["q", "v"], "layers_to_transform": 1},
        {"target_modules": ["q", "blocks.0.v"], "layers_to_transform": [1], "layers_pattern": "blocks"},
        {"target_modules": ["q", "head"], "modules_to_save": ["head"]},
    ],
)
def test_targets_match_the_same_modules_as_in_peft(net, settings):
    model = nn.Sequential(net)
    mine = find_targets(model, HRAConfig(**settings))
    theirs = get_peft_model(model, PeftHRAConfig(**settings)).targeted_module_names
    assert sorted(mine) == sorted(theirs)


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_language_models_have_default_targets_without_their_output_layer(name, targets):
    size = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.device("meta"):
        model = {
            "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2)),
            "llama": lambda: LlamaForCausalLM(LlamaConfig(intermediate_size=16, **size)),
            "t5": lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
            ),
        }[name]()
    matches = find_targets(model, HRAConfig(target_modules=targets))
    assert matches
    assert not any("lm_head" in module for module in matches)
    if targets is None:
        defaults = ARCHITECTURE_TARGETS[name]
        assert {module.rsplit(".", 1)[1] for module in matches} == set(defaults)


def test_the_default_targets_are_those_of_peft():
    from peft.utils import TRANSFORMERS_MODELS_TO_HRA_TARGET_MODULES_MAPPING

    theirs = dict(TRANSFORMERS_MODELS_TO_HRA_TARGET_MODULES_MAPPING)
    mine = {
        name: targets if isinstance(targets, str) else list(targets) for name, targets in ARCHITECTURE_TARGETS.items()
    }
    assert mine.keys() - theirs.keys() == {
        "ChromaTransformer2DModel",
        "Flux2Transformer2DModel",
        "FluxTransformer2DModel",
        "QwenImageTransformer2DModel",
        "UNet2DConditionModel",
        "ZImageTransformer2DModel",
        "clip_text_model",
    }
    assert {name: mine[name] for name in theirs} == theirs


def test_diffusion_models_have_default_targets(tiny_unet, tiny_clip):
    assert len(find_targets(tiny_unet, HRAConfig())) == 48
    assert len(find_targets(tiny_clip, HRAConfig())) == 12


def test_an_unknown_architecture_needs_targets(net):
    with pytest.raises(TargetError, match=r"No default targets are known for Net .*set target_modules"):
        find_targets(net, HRAConfig())


def test_targets_without_a_match_are_refused_with_the_nearest_names(net):
    with pytest.raises(TargetError, match=r"'haed' match no module .*some of its modules are: head"):
        find_targets(net, HRAConfig(target_modules=["haed"]))
    with pytest.raises(TargetError, match=r"within layers_to_transform 7"):
        find_targets(net, HRAConfig(target_modules=["q"], layers_to_transform=7))


def test_every_target_name_must_match_a_module(net):
    check_target_names(HRAConfig(target_modules=["q", "head"]), net)
    check_target_names(HRAConfig(target_modules="all-linear"), net)
    check_target_names(HRAConfig(target_modules=["q", "0"]), net, nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(TargetError, match=r"target_modules 'haed' match no module .*some of its modules are: head"):
        check_target_names(HRAConfig(target_modules=["q", "haed"]), net)


def test_all_linear_excludes_an_output_layer_that_attention_never_calls():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    assert find_targets(model, HRAConfig(target_modules="all-linear")) == ["1"]
