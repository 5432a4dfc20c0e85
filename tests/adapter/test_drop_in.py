"""PEFT's names and habits: attributes reach the model, savers' arguments, mixed batches, settings."""

import json

import pytest
import torch
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.errors import AdapterFileError, ConfigError


class Block(nn.Module):
    """A model with a convolution, linear layers and a head."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(3, 8, 3, padding=1)
        self.project = nn.Conv2d(8, 8, 1)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)
        self.note = "inner"

    def forward(self, x):
        hidden = self.project(self.conv_in(x)).mean((2, 3))
        return self.head(self.body(hidden).relu())


TARGETS = ["conv_in", "project", "body"]


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Block()


def random_adapter(base, *names, **settings):
    config = HRAConfig(r=2, init_weights=False, target_modules=TARGETS, **settings)
    torch.manual_seed(1)
    return HRAModel(base, dict.fromkeys(names or ("default",), config), (names or ("default",))[0])


def test_attributes_that_are_set_and_deleted_reach_the_model(base):
    model = random_adapter(base)
    head = nn.Linear(8, 5)
    model.head = head
    assert base.head is head
    assert model(torch.zeros(1, 3, 4, 4)).shape == (1, 5)
    model.note = "set"
    assert base.note == "set"
    del model.note
    assert not hasattr(base, "note")
    model.of_the_wrapper = 1
    assert not hasattr(base, "of_the_wrapper")
    del model.of_the_wrapper
    assert not hasattr(model, "of_the_wrapper")
    with pytest.raises(AttributeError):
        del model.unknown


@pytest.mark.parametrize("target", ["conv_in", "project", "body"])
def test_the_first_parameter_and_its_dtype_are_the_bases(base, target):
    model = HRAModel(base.bfloat16(), HRAConfig(r=2, target_modules=[target]))
    first = next(iter(dict(model.named_parameters())))
    assert first == f"model.conv_in.{'base_layer.' if target == 'conv_in' else ''}weight"
    assert next(model.parameters()).dtype == torch.bfloat16
    layer = model.adapted_layers()[target]
    assert next(layer.parameters()) is layer.base_layer.weight
    assert {name for name, _ in model.named_parameters()} == set(model.state_dict())


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_mixed_batch_gives_each_row_the_output_of_its_adapter(base, strength):
    model = random_adapter(base, "a", "b", modules_to_save=["head"]).eval()
    with torch.no_grad():
        for name in "ab":
            for weight in model._injection.copies["head"].copies[name].parameters():
                weight.add_(ord(name) / 100)
    model.set_strength(strength, "b")
    x = torch.randn(4, 3, 4, 4)
    rows = ["b", "__base__", "a", "b"]
    mixed = model(x, adapter_names=rows)
    for index, name in enumerate(rows):
        if name == "__base__":
            with model.disable_adapter():
                expected = model(x[index : index + 1])
        else:
            model.set_adapter(name)
            expected = model(x[index : index + 1])
        assert torch.allclose(mixed[index], expected[0], atol=1e-6), name
    model.set_adapter("a")
    assert torch.allclose(model(x, adapter_names=["a"] * 4), model(x), atol=1e-6)


def test_gradients_of_a_mixed_batch_reach_each_rows_adapter(base):
    model = random_adapter(base, "a", "b")
    model.set_requires_grad(["a", "b"])
    model(torch.randn(2, 3, 4, 4), adapter_names=["b", "__base__"]).sum().backward()
    layer = model.adapted_layers()["body"]
    assert layer.hra_u["b"].grad.any()
    assert layer.hra_u["a"].grad is None


def test_impossible_mixed_batches_are_refused(base):
    model = random_adapter(base, "a", "b")
    with pytest.raises(ConfigError, match="no adapter named 'c'"):
        model(torch.zeros(2, 3, 4, 4), adapter_names=["a", "c"])
    with pytest.raises(ConfigError, match=r"2 examples .* and a layer got 3 rows"):
        model(torch.zeros(3, 3, 4, 4), adapter_names=["a", "b"])
    model.merge_adapter()
    with pytest.raises(ConfigError, match="unmerge them first"):
        model(torch.zeros(2, 3, 4, 4), adapter_names=["a", "b"])


def test_savers_arguments_are_accepted_or_refused(base, tmp_path):
    model = random_adapter(base)
    model.save_pretrained(tmp_path / "a", state_dict=None, is_main_process=True, save_function=torch.save)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    model.save_pretrained(tmp_path / "b", is_main_process=False)
    assert not (tmp_path / "b").exists()
    with pytest.raises(ConfigError, match="never pickled"):
        model.save_pretrained(tmp_path / "b", safe_serialization=False)
    with pytest.raises(ConfigError, match="modules_to_save"):
        model.save_pretrained(tmp_path / "b", save_embedding_layers=True)
    with pytest.raises(TypeError, match="commit_message"):
        model.save_pretrained(tmp_path / "b", commit_mesage="typo")


def test_several_adapters_are_saved_as_in_peft(base, tmp_path):
    model = random_adapter(base, "default", "other")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").exists()
    assert (tmp_path / "other" / "adapter_config.json").exists()
    model.save_pretrained(tmp_path / "one", selected_adapters=["other"])
    assert [path.name for path in (tmp_path / "one").iterdir() if path.is_dir()] == ["other"]
    model.save_pretrained(tmp_path / "named", "other")
    assert (tmp_path / "named" / "adapter_config.json").exists()


def test_a_state_dict_gives_the_values_to_save(base, tmp_path):
    model = random_adapter(base)
    state = {name: value + 1 for name, value in model.state_dict().items()}
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    model.save_pretrained(tmp_path, state_dict=state)
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    loaded = HRAModel.from_pretrained(Block(), tmp_path)
    for name, layer in loaded.adapted_layers().items():
        assert torch.equal(layer.hra_u["default"], state[f"model.{name}.hra_u_default"])


@pytest.mark.parametrize("settings", [{}, {"apply_GS": True}, {"bias": "hra_only"}, {"modules_to_save": ["head"]}])
def test_an_adapter_is_loaded_over_a_present_one_in_place(tmp_path, settings):
    torch.manual_seed(0)
    model = HRAModel(Block(), HRAConfig(r=2, target_modules=TARGETS, **settings))
    x = torch.randn(2, 3, 4, 4)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.5)
    model(x).square().sum().backward()
    optimizer.step()
    expected = model(x).detach()
    model.save_pretrained(tmp_path)
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer.step()
    assert not torch.allclose(model(x), expected, atol=1e-4)
    model.load_adapter(tmp_path, is_trainable=True)
    assert torch.allclose(model(x), expected, atol=1e-5)
    assert all(map(object.__eq__, parameters, [w for w in model.parameters() if w.requires_grad]))
    plain = HRAModel(Block(), HRAConfig(r=4, target_modules=TARGETS))
    plain.save_pretrained(tmp_path / "four")
    with pytest.raises(AdapterFileError, match="not orthonormal" if "apply_GS" in settings else "has rank 2"):
        model.load_adapter(tmp_path / "four")


def test_a_loaded_model_is_in_evaluation_mode_unless_it_trains(base, tmp_path):
    random_adapter(base).save_pretrained(tmp_path)
    assert not HRAModel.from_pretrained(Block().train(), tmp_path).training
    assert HRAModel.from_pretrained(Block().train(), tmp_path, is_trainable=True).training


def test_mismatched_columns_are_left_out_and_names_are_mapped_on_request(base, tmp_path):
    random_adapter(base).save_pretrained(tmp_path)
    wider = Block()
    wider.body = nn.Linear(16, 8)
    with pytest.raises(AdapterFileError, match="shapes differ"):
        HRAModel.from_pretrained(wider, tmp_path)
    with pytest.warns(UserWarning, match="left out: body"):
        model = HRAModel.from_pretrained(wider, tmp_path, ignore_mismatched_sizes=True)
    assert set(model.adapted_layers()) == {"conv_in", "project"}
    renamed = nn.ModuleDict({"inner": Block()})
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    config = HRAConfig.from_peft(settings)
    mapped = HRAModel.from_pretrained(renamed, tmp_path, config=config, key_mapping={"^": "inner."})
    assert set(mapped.adapted_layers()) == {f"inner.{name}" for name in TARGETS}


def test_settings_can_be_set_until_they_are_used(base, tmp_path):
    config = HRAConfig(r=2)
    config.target_modules = ["body"]
    assert config.target_modules == ("body",)
    with pytest.raises(ConfigError, match="at least 1"):
        config.r = 0
    assert config.r == 2
    with pytest.raises(ConfigError, match="no setting 'rank'"):
        config.rank = 3
    config.save_pretrained(tmp_path)
    assert HRAConfig.from_pretrained(tmp_path) == config
    assert config.to_dict()["peft_type"] == config.peft_type == "HRA"
    HRAModel(base, config)
    with pytest.raises(ConfigError, match="A model uses these settings: r cannot change"):
        config.r = 4
    with pytest.raises(ConfigError, match="cannot be read"):
        HRAConfig.from_pretrained(tmp_path / "missing")


def test_the_status_of_layers_and_model_is_reported(base):
    model = random_adapter(base, "a", "b")
    model.set_requires_grad("b", False)
    status = model.get_model_status()
    assert (status.num_adapter_layers, status.active_adapters, status.available_adapters) == (3, ["a"], ["a", "b"])
    assert status.requires_grad == {"a": True, "b": False}
    model.adapted_layers()["body"].hra_u["a"].requires_grad = False
    assert model.get_model_status().requires_grad["a"] == "irregular"
    assert {layer.name for layer in model.get_layer_status()} == {f"model.{name}" for name in TARGETS}
    assert model.targeted_module_names == TARGETS
    assert model.get_base_model() is model.base_model.model is base
    assert model.active_peft_config is model.peft_config["a"]
    assert model.peft_type == "HRA"
    assert model.has_active_enabled_adapter
    with model.disable_adapter():
        assert not model.has_active_enabled_adapter


def test_a_card_is_written_beside_the_adapter_and_completed(base, tmp_path):
    model = random_adapter(base, task_type="CAUSAL_LM", base_model_name_or_path="me/model")
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    for line in ("library_name: peft", "base_model: me/model", "pipeline_tag: text-generation", "# Adapter"):
        assert line in card
    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags: [mine]\n---\n\n# My adapter\n")
    model.create_or_update_model_card(tmp_path)
    card = (tmp_path / "README.md").read_text()
    for line in ("license: mit", "- mine", "- hra", "# My adapter", "base_model: me/model"):
        assert line in card


def test_the_adapter_alone_is_published(base, monkeypatch):
    from hra_diffusion import model as module

    seen = {}

    def upload(folder, repo_id, **hub):
        seen[repo_id] = sorted(path.name for path in folder.iterdir()), hub
        return "address"

    monkeypatch.setattr(module, "upload_folder", upload)
    monkeypatch.setattr(module, "check_arguments", lambda *_: None)
    assert random_adapter(base).push_to_hub("me/adapter", private=True) == "address"
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert seen == {"me/adapter": (files, {"private": True})}
