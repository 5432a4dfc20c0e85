"""PEFT's interface: the same names with the same meaning."""

import copy

import pytest
import torch
from peft import HRAConfig as PeftHRAConfig
from peft import HRAModel as PeftHRAModel
from peft import PeftModel, get_peft_model
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.errors import ConfigError, TargetError

TARGETS = ("q", "v", "out")


def train(model: nn.Module, x: torch.Tensor, steps: int = 5) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()


def test_the_model_has_every_public_method_of_pefts(net):
    ours = HRAModel(net, HRAConfig(target_modules=["q"]))
    for name in ("merge_and_unload", "unload", "set_adapter", "delete_adapter", "merge_adapter", "unmerge_adapter"):
        assert hasattr(PeftHRAModel, name)
        assert callable(getattr(ours, name))
    for name in ("enable_adapter_layers", "disable_adapter_layers", "add_adapter", "active_adapters", "peft_config"):
        assert hasattr(ours, name)


def test_several_configurations_are_injected_and_the_named_one_is_active(net, x):
    configs = {name: HRAConfig(r=2, target_modules=["q"], init_weights=False) for name in ("a", "b")}
    model = HRAModel(net, configs, "b")
    assert model.active_adapters == ["b"]
    assert model.active_adapter == "b"
    assert list(net.blocks[0]["q"].hra_u) == ["a", "b"]
    with pytest.raises(ConfigError, match="'c' is none of the configured ones: a, b"):
        HRAModel(type(net)(), configs, "c")


@pytest.mark.parametrize("bias", ["none", "all", "hra_only"])
def test_biases_train_as_in_peft_and_are_restored(net, x, bias, tmp_path):
    base = copy.deepcopy(net)
    expected, before = net(x), copy.deepcopy(net.state_dict())
    settings = {"r": 2, "target_modules": list(TARGETS), "bias": bias}
    theirs = get_peft_model(copy.deepcopy(net), PeftHRAConfig(**settings))
    model = HRAModel(net, HRAConfig(**settings))
    mine = {name for name, p in model.named_parameters() if p.requires_grad and name.endswith("bias")}
    assert {f"base_model.{name}" for name in mine} == {
        name for name, p in theirs.named_parameters() if p.requires_grad and name.endswith("bias")
    }
    train(model, x)
    trained = model(x)
    with model.disable_adapter():
        assert torch.equal(model(x), expected)
    assert torch.equal(model(x), trained)
    model.save_pretrained(tmp_path)
    for again in (
        HRAModel.from_pretrained(copy.deepcopy(base), tmp_path),
        PeftModel.from_pretrained(copy.deepcopy(base), tmp_path),
    ):
        assert torch.allclose(again(x), trained, atol=1e-5)
    model.unload()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_only_one_adapter_trains_biases_and_activates_them(net, x):
    expected = net(x)
    model = HRAModel(net, HRAConfig(r=2, target_modules=["q"], bias="all"), "a")
    train(model, x)
    trained = model(x)
    with pytest.raises(ConfigError, match="Only one adapter can train biases, and 'a' does"):
        model.add_adapter("b", HRAConfig(target_modules=["q"], bias="hra_only"))
    model.add_adapter("b", HRAConfig(target_modules=["q"]))
    model.set_adapter("b")
    assert torch.allclose(model(x), expected, atol=1e-5)
    model.set_adapter("a")
    assert torch.equal(model(x), trained)
    model.delete_adapter("a")
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_modules_to_save_train_whole_and_are_exchanged_with_peft(net, x, tmp_path):
    base, expected, head = copy.deepcopy(net), net(x), net.head
    settings = {"r": 2, "target_modules": list(TARGETS), "modules_to_save": ["head", "norm"]}
    model = HRAModel(net, HRAConfig(**settings))
    assert model.get_nb_trainable_parameters()[0] == 2 * 2 * (12 + 12 + 8) + (12 * 3 + 3) + 2 * 12
    train(model, x)
    trained = model(x)
    with model.disable_adapter():
        assert torch.equal(model(x), expected)
    model.save_pretrained(tmp_path / "ours")
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours")
    assert torch.allclose(theirs(x), trained, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        again = HRAModel.from_pretrained(copy.deepcopy(base), tmp_path / folder)
        assert torch.allclose(again(x), trained, atol=1e-5)
    assert model.unload() is net
    assert net.head is head
    assert torch.equal(net(x), expected)


def test_merge_and_unload_keeps_trained_modules_and_no_layer_of_hra(net, x):
    settings = {"r": 2, "target_modules": list(TARGETS), "modules_to_save": ["head"], "bias": "hra_only"}
    names = [name for name, _ in net.named_parameters()]
    model = HRAModel(net, HRAConfig(**settings))
    train(model, x)
    trained = model(x)
    merged = model.merge_and_unload(progressbar=True, safe_merge=True)
    assert merged is net
    assert torch.allclose(net(x), trained, atol=1e-5)
    assert [name for name, _ in net.named_parameters()] == names
    assert all(p.requires_grad for p in net.parameters())
    assert "hra" not in str(net).lower()


def test_named_adapters_are_merged_in_order_as_in_peft(net, x):
    theirs = copy.deepcopy(net)
    settings = {"r": 2, "target_modules": list(TARGETS)}
    model = HRAModel(net, {name: HRAConfig(**settings, init_weights=False) for name in ("a", "b")}, "a")
    peft = PeftHRAModel(theirs, {"a": PeftHRAConfig(**settings), "b": PeftHRAConfig(**settings)}, "a")
    peft.inject_adapter(peft.model, "b")
    with torch.no_grad():
        for name, layer in model.adapted_layers().items():
            for adapter, columns in layer.hra_u.items():
                theirs.get_submodule(name).hra_u[adapter].copy_(columns)
    for adapted in (model, peft):
        adapted.merge_adapter(["b"])
        adapted.merge_adapter(["a"])
    assert model.merged_adapters == ["b", "a"]
    assert torch.allclose(model(x), theirs(x), atol=1e-5)
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter(["a"])
    with pytest.raises(ConfigError, match="while they are merged"):
        model.delete_adapter("a")
    with pytest.warns(UserWarning, match="Merged adapters are unmerged"):
        model.set_adapter("b")
    assert model.merged_adapters == []


def test_a_disabled_merged_model_equals_its_base(net, x):
    expected = net(x)
    model = HRAModel(net, HRAConfig(target_modules=TARGETS, init_weights=False))
    model.merge_adapter()
    merged = model(x)
    with model.disable_adapter():
        assert torch.equal(model(x), expected)
    assert torch.equal(model(x), merged)
    assert model.merged_adapters == ["default"]


def test_a_module_cannot_be_adapted_and_trained_whole(net):
    model = HRAModel(net, HRAConfig(target_modules=["q"]), "a")
    for whole in (["q"], ["blocks"]):
        with pytest.raises(ConfigError, match=r"cannot be adapted and trained whole: modules_to_save has 'blocks"):
            model.add_adapter("b", HRAConfig(target_modules=["head"], modules_to_save=whole))
    assert list(model.peft_config) == ["a"]


def test_unknown_modules_to_save_are_refused_with_the_nearest_name(net):
    with pytest.raises(TargetError, match=r"no module 'haed' to train whole .*some of its modules: head"):
        HRAModel(net, HRAConfig(target_modules=["q"], modules_to_save=["haed"]))


def test_low_cpu_mem_usage_creates_columns_on_the_meta_device(net, x):
    model = HRAModel(net, HRAConfig(r=2, target_modules=["q"]), low_cpu_mem_usage=True)
    assert all(layer.hra_u["default"].is_meta for layer in model.adapted_layers().values())
    other = HRAModel(type(net)(), HRAConfig(r=2, target_modules=["q"], init_weights=False))
    state = {name: value for name, value in other.state_dict().items() if "hra_u" in name}
    model.load_state_dict(state, strict=False, assign=True)
    assert model(x).isfinite().all()


def test_a_state_dict_chooses_the_modules_and_their_initial_columns(net, tmp_path):
    columns = torch.randn(12, 4)
    model = HRAModel(net, HRAConfig(r=4, target_modules=["q", "v"]), state_dict={"blocks.1.q.hra_u": columns})
    assert list(model.adapted_layers()) == ["blocks.1.q"]
    assert torch.equal(model.adapted_layers()["blocks.1.q"].hra_u["default"], columns)
    model.save_pretrained(tmp_path)
    again = HRAModel.from_pretrained(type(net)(), tmp_path)
    assert list(again.adapted_layers()) == ["blocks.1.q"]
    get_peft_model(type(net)(), PeftHRAConfig(target_modules=["q"])).load_adapter(tmp_path, "again")


def test_inference_mode_freezes(net):
    model = HRAModel(net, HRAConfig(target_modules=["q"], inference_mode=True))
    assert model.get_nb_trainable_parameters()[0] == 0
    model.add_adapter("b", HRAConfig(target_modules=["q"]))
    model.set_adapter("b", inference_mode=True)
    assert model.get_nb_trainable_parameters()[0] == 0
    model.set_adapter("b")
    assert model.get_nb_trainable_parameters()[0] > 0


def test_numbers_of_parameters_are_printed_as_in_peft(net, capsys):
    settings = {"r": 2, "target_modules": ["q"]}
    theirs = get_peft_model(copy.deepcopy(net), PeftHRAConfig(**settings))
    HRAModel(net, HRAConfig(**settings)).print_trainable_parameters()
    mine = capsys.readouterr().out
    theirs.print_trainable_parameters()
    assert mine == capsys.readouterr().out


def test_deepcopies_and_pickles_are_independent_models(net, x):
    import pickle

    model = HRAModel(net, HRAConfig(target_modules=TARGETS, init_weights=False))
    expected = model(x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is HRAModel
        assert torch.equal(twin(x), expected)
        twin.eval().set_strength(0)
        assert not torch.equal(twin(x), expected)
        twin.unload()
        assert torch.equal(model(x), expected)
