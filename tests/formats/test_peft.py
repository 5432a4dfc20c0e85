"""Adapters are exchanged with PEFT without a difference, or refused with the model unchanged."""

import copy
import json

import pytest
import torch
from peft import HRAConfig as PeftHRAConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.adapter.targets import CLIP_TEXT_FULL, UNET_ATTENTION
from hra_diffusion.errors import AdapterFileError, OutputError
from hra_diffusion.formats.peft import read_adapter, swap_adapter

TOKENS = torch.tensor([[1, 2, 3, 4]])
CASES = {
    "linear": ("net", ("q", "v", "out"), lambda model: model(torch.ones(2, 12))),
    "text encoder": ("tiny_clip", CLIP_TEXT_FULL, lambda model: model(TOKENS).last_hidden_state),
    "unet": (
        "tiny_unet",
        UNET_ATTENTION,
        lambda model: model(torch.ones(1, 4, 8, 8), torch.tensor([3]), torch.ones(1, 5, 16)).sample,
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    name, targets, run = CASES[request.param]
    return request.getfixturevalue(name), targets, run


def scatter(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hra_u" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator))


def adapted(model: nn.Module, targets, r: int = 4) -> HRAModel:
    mine = HRAModel(model, HRAConfig(r=r, target_modules=targets))
    scatter(mine)
    return mine


def test_peft_loads_our_adapters(case, tmp_path):
    model, targets, run = case
    base = copy.deepcopy(model)
    mine = adapted(model, targets)
    mine.save_pretrained(tmp_path)
    theirs = PeftModel.from_pretrained(base, tmp_path)
    assert torch.allclose(run(theirs), run(mine), rtol=0, atol=1e-5)


def test_we_load_adapters_of_peft(case, tmp_path):
    model, targets, run = case
    theirs = get_peft_model(copy.deepcopy(model), PeftHRAConfig(r=4, target_modules=list(targets)))
    scatter(theirs)
    theirs.save_pretrained(tmp_path)
    mine = HRAModel.from_pretrained(model, tmp_path)
    assert torch.allclose(run(mine), run(theirs), rtol=0, atol=1e-5)


def test_a_saved_adapter_comes_back_bit_by_bit(case, tmp_path):
    model, targets, run = case
    mine = adapted(model, targets)
    expected = run(mine)
    mine.save_pretrained(tmp_path)
    again = HRAModel.from_pretrained(mine.unload(), tmp_path, "other")
    assert torch.equal(run(again), expected)
    assert again.active_adapters == ["other"]


def test_the_files_hold_pefts_names_and_shapes(net, tmp_path):
    adapted(net, ["q", "v"]).save_pretrained(tmp_path)
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert shapes == {f"base_model.model.blocks.{i}.{module}.hra_u": (12, 4) for i in range(2) for module in "qv"}
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "HRA"
    assert config["target_modules"] == ["q", "v"]


def test_text_encoder_modules_are_read_with_and_without_their_prefix(tiny_clip, tmp_path):
    mine = adapted(tiny_clip, CLIP_TEXT_FULL)
    expected = mine(TOKENS).last_hidden_state
    mine.save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    renamed = {k.replace("base_model.model.", "base_model.model.text_model."): v for k, v in load_file(weights).items()}
    save_file(renamed, weights)
    assert torch.equal(HRAModel.from_pretrained(mine.unload(), tmp_path)(TOKENS).last_hidden_state, expected)


def test_peft_loads_an_adapter_of_the_default_targets(tiny_clip, tmp_path):
    mine = HRAModel(copy.deepcopy(tiny_clip), HRAConfig(r=4))
    scatter(mine)
    mine.save_pretrained(tmp_path)
    expected = {name: tensor for name, tensor in mine.adapter_state_dict()[1].items() if name.endswith("hra_u")}
    theirs = PeftModel.from_pretrained(tiny_clip, tmp_path).base_model.model
    loaded = {name.removesuffix(".default"): p for name, p in theirs.named_parameters() if "hra_u" in name}
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_the_prefix_is_added_for_a_model_with_the_prefix(tiny_clip, tmp_path):
    mine = adapted(tiny_clip, CLIP_TEXT_FULL)
    expected = mine(TOKENS).last_hidden_state
    mine.save_pretrained(tmp_path)
    wrapped = nn.ModuleDict({"text_model": mine.unload()})
    HRAModel.from_pretrained(wrapped, tmp_path)
    assert torch.allclose(wrapped["text_model"](TOKENS).last_hidden_state, expected, atol=1e-6)


def test_a_loaded_adapter_is_frozen_unless_it_is_trainable(net, tmp_path):
    adapted(net, ["q"]).save_pretrained(tmp_path)
    for is_trainable in (False, True):
        fresh = HRAModel.from_pretrained(type(net)(), tmp_path, is_trainable=is_trainable)
        assert (fresh.get_nb_trainable_parameters()[0] > 0) == is_trainable


def test_a_second_adapter_is_loaded_beside_the_first(net, tmp_path):
    adapted(net, ["q"]).save_pretrained(tmp_path)
    model = HRAModel(type(net)(), HRAConfig(target_modules=["v"]), "first")
    assert HRAModel.from_pretrained(model, tmp_path, "second") is model
    assert list(model.peft_config) == ["first", "second"]
    assert model.active_adapters == ["first"]


@pytest.mark.parametrize("r", [2, 4])
def test_pefts_gram_schmidt_keeps_its_meaning(net, tmp_path, r):
    base = copy.deepcopy(net)
    settings = {"r": r, "target_modules": ["q", "v", "out"], "apply_GS": True, "init_weights": False}
    theirs = get_peft_model(net, PeftHRAConfig(**settings))
    theirs.save_pretrained(tmp_path / "theirs")
    x = torch.randn(3, 12)
    mine = HRAModel.from_pretrained(base, tmp_path / "theirs", is_trainable=True)
    assert torch.allclose(mine(x), theirs(x), rtol=0, atol=1e-5)
    for model in (mine, theirs):
        model(x).square().sum().backward()
    for name, layer in mine.adapted_layers().items():
        expected = theirs.get_submodule(f"base_model.model.{name}").hra_u["default"].grad
        assert torch.allclose(layer.hra_u["default"].grad, expected, rtol=0, atol=1e-4)
    mine.save_pretrained(tmp_path / "ours")
    assert not json.loads((tmp_path / "ours" / "adapter_config.json").read_text())["apply_GS"]
    again = PeftModel.from_pretrained(mine.unload(), tmp_path / "ours")
    assert torch.allclose(again(x), theirs(x), rtol=0, atol=1e-5)


def test_a_misspelled_argument_is_refused_with_the_nearest_name(net, tmp_path):
    adapted(net, ["q"]).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="no argument named 'is_trainble': did you mean 'is_trainable'"):
        HRAModel.from_pretrained(type(net)(), tmp_path, is_trainble=True)


def test_an_adapter_is_swapped_from_a_folder_in_place(net, tmp_path):
    x = torch.randn(3, 12)
    narrow = adapted(copy.deepcopy(net), ["q"], r=2)
    narrow.save_pretrained(tmp_path)
    model = adapted(net, ["q", "v"], r=4)
    address = model.adapted_layers()["blocks.0.q"].hra_u["default"].data_ptr()
    swap_adapter(model, tmp_path)
    assert torch.allclose(model(x), narrow(x), atol=1e-6)
    assert model.adapted_layers()["blocks.0.q"].hra_u["default"].data_ptr() == address


def test_an_adapter_is_read_from_the_hubs_cache(net, tmp_path):
    """The layout of huggingface_hub's cache, offline, as it is after a download."""
    commit = "0" * 40
    repository = tmp_path / "models--someone--some-adapter"
    adapted(net, ["q"]).save_pretrained(repository / "snapshots" / commit / "unet")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    model = HRAModel.from_pretrained(
        type(net)(), "someone/some-adapter", subfolder="unet", cache_dir=tmp_path, local_files_only=True
    )
    assert model.adapted_layers()
    with pytest.raises(AdapterFileError, match="'someone/other' is no folder here"):
        HRAModel.from_pretrained(type(net)(), "someone/other", cache_dir=tmp_path, local_files_only=True)


def _edit_weights(edit):
    def spoil(folder):
        path = folder / "adapter_model.safetensors"
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path)

    return spoil


def _edit_config(**settings):
    def spoil(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return spoil


def _pickle(folder):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80")


KEY = "base_model.model.blocks.0.q.hra_u"
SPOILT = {
    "NaN": (_edit_weights(lambda t: t[KEY].fill_(float("nan"))), "not finite, in base_model"),
    "wrong shape": (
        _edit_weights(lambda t: t.update({KEY: torch.ones(9, 4)})),
        r"blocks.0.q has \(9, 4\) instead of \(12, 4\)",
    ),
    "wrong dtype": (_edit_weights(lambda t: t.update({KEY: t[KEY].int()})), "does not fit"),
    "missing key": (
        _edit_weights(lambda t: t.pop(KEY)),
        r"no weights for 1 of .*blocks\.0\.q\.hra_u\. It is damaged, or was",
    ),
    "unexpected module": (
        _edit_weights(lambda t: t.update({"nowhere.hra_u": torch.ones(12, 4)})),
        r"lacks: nowhere\.hra_u",
    ),
    "unexpected tensor": (
        _edit_weights(lambda t: t.update({"blocks.0.q.lora_A": torch.ones(1)})),
        r"blocks\.0\.q\.lora_A",
    ),
    "one name twice": (
        _edit_weights(lambda t: t.update({"blocks.0.q.hra_u": torch.ones(12, 4)})),
        r"two tensors of one name: blocks\.0\.q\.hra_u",
    ),
    "no switch": (_edit_config(apply_GS="false"), "apply_GS must be true or false"),
    "path": (_edit_weights(lambda t: t.update({"../x": torch.ones(1)})), "path for a name"),
    "other type": (_edit_config(peft_type="LORA"), "not an HRA adapter: its peft_type is 'LORA'"),
    "other rank": (_edit_config(r=8), r"does not fit the model; .*\(12, 4\) instead of \(12, 8\)"),
    "bad rank": (_edit_config(r=0), "rank r must be"),
    "pickle": (_pickle, "pickled and never read"),
    "no weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "Cannot read"),
    "no settings": (lambda folder: (folder / "adapter_config.json").unlink(), "Cannot read"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
@pytest.mark.parametrize("has_adapter", [False, True])
def test_loading_is_all_or_nothing(net, tmp_path, spoilt, has_adapter):
    spoil, message = SPOILT[spoilt]
    adapted(net, ["q", "v"]).save_pretrained(tmp_path)
    spoil(tmp_path)
    model = HRAModel(type(net)(), HRAConfig(target_modules=["out"])) if has_adapter else type(net)()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = str(model)
    with pytest.raises(AdapterFileError, match=message):
        HRAModel.from_pretrained(model, tmp_path, "new")
    assert str(model) == modules
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("bias", ["all", "hra_only"])
def test_biases_and_fully_trained_modules_are_exchanged_with_peft(net, tmp_path, bias):
    base, x = copy.deepcopy(net), torch.randn(3, 12)
    settings = {"r": 2, "target_modules": ["q", "v"], "bias": bias, "modules_to_save": ["head"]}
    theirs = get_peft_model(copy.deepcopy(net), PeftHRAConfig(**settings))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    mine = HRAModel.from_pretrained(net, tmp_path / "theirs")
    assert torch.allclose(mine(x), theirs(x), atol=1e-5)
    mine.save_pretrained(tmp_path / "ours")
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "ours")
    assert torch.allclose(again(x), theirs(x), atol=1e-5)
    path = tmp_path / "ours" / "adapter_model.safetensors"
    tensors = load_file(path)
    del tensors["base_model.model.blocks.0.q.base_layer.bias"]
    save_file(tensors, path)
    with pytest.raises(AdapterFileError, match=r"biases are missing, too many or of another shape: blocks\.0\.q\.bias"):
        HRAModel.from_pretrained(base, tmp_path / "ours")


def test_an_adapter_of_another_base_is_refused_with_the_name_of_its_base(net, tmp_path):
    mine = HRAModel(net, HRAConfig(target_modules=["q"], base_model_name_or_path="some/base"))
    mine.save_pretrained(tmp_path)
    with pytest.raises(AdapterFileError, match="made for some/base, does not fit"):
        HRAModel.from_pretrained(type(net)(width=16), tmp_path)


def test_a_missing_folder_is_named(net, tmp_path):
    with pytest.raises(AdapterFileError, match="gone is no folder with an adapter"):
        read_adapter(tmp_path / "gone")


def test_an_unwritable_folder_is_named(net, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Cannot write"):
        adapted(net, ["q"]).save_pretrained(tmp_path / "file")
