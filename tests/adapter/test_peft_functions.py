"""PEFT's functions, and its names in the details: what PEFT's own tests ask of a model (benchmarks/peft_suite.py)."""

import copy
import json

import pytest
import torch
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.errors import ConfigError, MergeError
from hra_diffusion.peft_functions import (
    get_base_model_state_dict,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_base_model_state_dict,
    set_peft_model_state_dict,
)


class Stack(nn.Module):
    """A model whose list of layers has the name that transformers gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


@pytest.fixture
def stack():
    torch.manual_seed(0)
    return Stack()


@pytest.fixture
def inputs():
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def config(**settings):
    defaults = {"r": 2, "init_weights": False, "target_modules": ["layers.0", "layers.1"]}
    return HRAConfig(**defaults | settings)


def test_no_name_of_the_wrapper_hides_the_layers_of_the_model(stack):
    model = HRAModel(stack, config())
    assert model.layers is stack.layers
    assert model.base_model.layers[0] is model.adapted_layers()["layers.0"]


def test_attributes_of_wrapper_and_model_are_listed(stack):
    assert {"peft_config", "layers", "head", "set_adapter"} <= set(dir(HRAModel(stack, config())))


def test_the_kind_of_the_adapter_has_pefts_value_and_prefix(stack):
    model = HRAModel(stack, config())
    assert model.peft_type.value == model.active_peft_config.peft_type.value == "HRA"
    assert json.loads(json.dumps(model.active_peft_config.to_dict()))["peft_type"] == "HRA"
    assert all(model.prefix in name for name, p in model.named_parameters() if p.requires_grad)
    assert not model.active_peft_config.is_adaption_prompt
    assert not model.supports_lora_conversion()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("apply_gs", [False, True])
def test_columns_have_the_precision_that_is_asked_for_and_rotate_in_full(stack, inputs, tmp_path, dtype, apply_gs):
    settings = config(apply_GS=apply_gs)
    base = stack.to(dtype)
    model = get_peft_model(copy.deepcopy(base), settings, autocast_adapter_dtype=False)
    model.add_adapter("added", settings, autocast_adapter_dtype=False)
    columns = [u for layer in model.adapted_layers().values() for u in layer.hra_u.values()]
    assert {u.dtype for u in columns} == {dtype}
    output = model(inputs.to(dtype))
    merged = copy.deepcopy(model).merge_and_unload()
    tolerance = 1e-12 if dtype == torch.float64 else 0.02
    for before, after in zip(base.layers, merged.layers, strict=True):
        assert torch.allclose(after.weight.norm(dim=1), before.weight.norm(dim=1), rtol=tolerance)
    assert torch.allclose(merged(inputs.to(dtype)), output, atol=tolerance)
    model.save_pretrained(tmp_path)
    loaded = HRAModel.from_pretrained(copy.deepcopy(base), tmp_path, autocast_adapter_dtype=False)
    loaded.load_adapter(tmp_path / "added", "added", autocast_adapter_dtype=False)
    assert {u.dtype for layer in loaded.adapted_layers().values() for u in layer.hra_u.values()} == {dtype}
    assert torch.allclose(loaded(inputs.to(dtype)), output, atol=tolerance)


def test_columns_in_half_precision_train(stack, inputs):
    model = get_peft_model(stack.to(torch.bfloat16), config(), autocast_adapter_dtype=False)
    model(inputs.to(torch.bfloat16)).sum().backward()
    for layer in model.adapted_layers().values():
        assert layer.hra_u["default"].grad.dtype == torch.bfloat16
        assert layer.hra_u["default"].grad.any()


def test_given_settings_are_used_themselves_and_frozen_as_asked(stack, tmp_path):
    settings = config()
    HRAModel(copy.deepcopy(stack), settings).save_pretrained(tmp_path)
    loaded = HRAModel.from_pretrained(stack, tmp_path, config=settings)
    assert loaded.peft_config["default"] is settings
    assert settings.inference_mode
    assert not any(p.requires_grad for p in loaded.parameters())


def test_loading_reports_missing_and_unexpected_names(stack, tmp_path):
    model = HRAModel(stack, config())
    model.save_pretrained(tmp_path)
    result = model.load_adapter(tmp_path, "other")
    assert (result.missing_keys, result.unexpected_keys) == ([], [])


def test_messages_are_those_that_pefts_users_search_for(stack):
    model = HRAModel(stack, config())
    with pytest.raises(ValueError, match="Adapter defualt does not exist: did you mean 'default'"):
        model.delete_adapter("defualt")
    model.merge_adapter()
    with pytest.warns(UserWarning, match="All adapters are already merged, nothing to do"):
        model.merge_adapter()
    with pytest.raises(ValueError, match=r"Cannot delete adapter\(s\) \['default'\] while they are merged"):
        model.delete_adapter("default")
    model.unmerge_adapter()
    model.adapted_layers()["layers.0"].hra_u["default"].data.fill_(torch.nan)
    with pytest.raises(MergeError, match=r"NaNs detected in the merged weights\. The adapter default seems"):
        model.merge_adapter(safe_merge=True)


def test_two_adapters_that_train_the_same_module_whole_are_not_active_together(stack):
    model = HRAModel(stack, config(modules_to_save=["head"]), "a")
    model.add_adapter("b", peft_config=config(modules_to_save=["head"]))
    with pytest.raises(ConfigError, match=r"Only one adapter can be set at a time.*'a', 'b' each train"):
        model.set_adapter(["a", "b"])
    assert model.active_adapters == ["a"]
    assert stack.head.active_adapters == ["a"]
    assert list(stack.head.modules_to_save) == ["a", "b"]
    assert any("modules_to_save" in name for name, p in model.named_parameters() if p.requires_grad)


def test_views_of_adapters_follow_their_deletion(stack):
    model = HRAModel(stack, config(), "a")
    strengths, columns = model.strengths, model.adapted_layers()["layers.0"].hra_u
    model.set_strength(0.5, "a")
    assert strengths == {"a": 0.5}
    assert list(columns) == ["a"]
    model.delete_adapter("a")
    assert not strengths
    assert not columns
    assert "a" not in columns


def test_layers_activate_and_disable_adapters_alone(stack, inputs):
    model = HRAModel(stack, config(), "a")
    model.add_adapter("b", config())
    model.set_adapter(["a", "b"])
    expected = model(inputs)
    model.set_adapter("a")
    for layer in model.adapted_layers().values():
        assert (layer.active_adapters, layer.merged_adapters, layer.disable_adapters) == (["a"], [], False)
        layer.set_adapter(["a", "b"])
    assert torch.allclose(model(inputs), expected)
    model.merge_adapter()
    assert torch.allclose(model(inputs), expected, atol=1e-6)
    model.unmerge_adapter()
    stack.layers[0].enable_adapters(False)
    with pytest.warns(UserWarning, match="some adapter layers that are enabled and others"), model.disable_adapter():
        pass
    assert not stack.layers[0].disable_adapters


@pytest.mark.parametrize("bias", ["none", "all", "hra_only"])
def test_an_adapters_tensors_pass_between_models(stack, inputs, bias):
    first = get_peft_model(copy.deepcopy(stack), config(bias=bias))
    for name, parameter in first.named_parameters():
        if name.endswith("bias") and parameter.requires_grad:
            parameter.data += 1
    tensors = get_peft_model_state_dict(first)
    assert "base_model.model.layers.0.hra_u" in tensors
    second = get_peft_model(stack, config())
    result = set_peft_model_state_dict(second, tensors | {"base_model.model.unknown.bias": torch.zeros(1)})
    assert result.unexpected_keys == ["base_model.model.unknown.bias"]
    assert torch.equal(second(inputs), first(inputs))


def test_the_base_models_tensors_keep_their_names(stack):
    expected = copy.deepcopy(stack.state_dict())
    model = get_peft_model(stack, config(modules_to_save=["head"]))
    assert get_base_model_state_dict(model).keys() == expected.keys()
    for parameter in stack.parameters():
        parameter.data += 1
    assert set_base_model_state_dict(model, expected).missing_keys == []
    assert all(torch.equal(value, expected[name]) for name, value in get_base_model_state_dict(model).items())


def test_an_injected_adapter_needs_no_wrapper_and_loads_from_meta(stack, inputs):
    source = get_peft_model(copy.deepcopy(stack), config())
    assert inject_adapter_in_model(config(), stack, low_cpu_mem_usage=True) is stack
    assert any(p.is_meta for p in stack.parameters())
    set_peft_model_state_dict(stack, get_peft_model_state_dict(source), low_cpu_mem_usage=True)
    assert torch.equal(stack(inputs), source(inputs))
    inject_adapter_in_model(config(), stack)
    assert not torch.equal(stack(inputs), source(inputs))
    with pytest.raises(ConfigError, match="no HRA adapters"):
        get_peft_model_state_dict(nn.Linear(2, 2))


def test_a_revision_is_kept_and_contradicting_ones_are_refused(stack):
    assert get_peft_model(stack, config(), revision="v1").peft_config["default"].revision == "v1"
    with pytest.raises(ConfigError, match="revision is 'v2'"):
        get_peft_model(Stack(), config(revision="v1"), revision="v2")
