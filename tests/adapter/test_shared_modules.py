"""Modules under two names, and parameters of two modules: adapted, merged and saved once."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hra_diffusion import HRAConfig, HRAModel


class Shared(nn.Module):
    """A linear layer and a convolution under two names each, and two linear layers with one weight."""

    def __init__(self):
        super().__init__()
        self.conv = self.conv_again = nn.Conv2d(6, 6, 3, padding=1)
        self.pointwise = self.pointwise_again = nn.Conv2d(6, 6, 1)
        self.linear = self.linear_again = nn.Linear(6, 6)
        self.first, self.tied = nn.Linear(6, 6), nn.Linear(6, 6)
        self.tied.weight = self.first.weight

    def forward(self, x):
        x = self.pointwise_again(self.pointwise(self.conv_again(self.conv(x))))
        return self.tied(self.first(self.linear_again(self.linear(x.mean((2, 3))))))


NAMES = ["conv", "pointwise", "linear"]


@pytest.fixture
def base():
    torch.manual_seed(0)
    return Shared()


@pytest.fixture
def x():
    return torch.randn(2, 6, 5, 5)


def adapt(base, *names, **settings):
    return HRAModel(base, HRAConfig(r=2, target_modules=list(names), init_weights=False, **settings)).eval()


@pytest.mark.parametrize("name", NAMES)
def test_a_module_under_two_names_is_adapted_and_merged_once(base, x, name):
    weight, before = getattr(base, name).weight, base(x)
    model = adapt(base, name, f"{name}_again")
    layer = getattr(base, name)
    assert list(model.adapted_layers()) == [name] and getattr(base, f"{name}_again") is layer
    adapted = model(x)
    model.merge_adapter()
    assert torch.allclose(model(x), adapted, atol=1e-6) and not torch.allclose(adapted, before, atol=1e-4)
    model.unmerge_adapter()
    assert layer.base_layer.weight is weight and torch.equal(model(x), adapted)
    unloaded = model.unload()
    assert getattr(unloaded, name) is getattr(unloaded, f"{name}_again") and torch.equal(unloaded(x), before)


@pytest.mark.parametrize("name", NAMES)
def test_a_module_under_two_names_is_saved_once_and_loaded_under_both(base, x, name, tmp_path):
    weights = {key: value.clone() for key, value in base.state_dict().items()}
    model = adapt(base, name)
    model.save_pretrained(tmp_path)
    assert list(load_file(tmp_path / "adapter_model.safetensors")) == [f"base_model.model.{name}.hra_u"]
    other = Shared()
    other.load_state_dict(weights)
    loaded = HRAModel.from_pretrained(other, tmp_path)
    assert torch.equal(loaded(x), model(x))
    merged = loaded.merge_and_unload()
    assert getattr(merged, name) is getattr(merged, f"{name}_again")
    assert torch.allclose(merged(x), model(x), atol=1e-6)


def test_a_module_under_two_names_that_trains_whole_is_copied_once(base, x):
    before = base(x)
    model = adapt(base, "conv", modules_to_save=["linear"])
    assert base.linear is base.linear_again
    with torch.no_grad():
        base.linear.copies["default"].bias += 1
    adapted = model(x)
    merged = model.merge_and_unload()
    assert merged.linear is merged.linear_again
    assert torch.allclose(merged(x), adapted, atol=1e-6) and not torch.allclose(before, adapted, atol=1e-3)


def test_a_second_adapter_and_a_deleted_one_keep_both_names(base, x):
    model = adapt(base, "linear")
    first = model(x)
    model.add_adapter("other", HRAConfig(r=2, target_modules=["linear", "conv"], init_weights=False))
    assert base.linear is base.linear_again and base.conv is base.conv_again
    assert torch.equal(model(x), first)
    model.delete_adapter("other")
    assert isinstance(base.conv_again, nn.Conv2d) and base.conv is base.conv_again
    assert torch.equal(model(x), first)


@pytest.mark.parametrize("names", [["first"], ["first", "tied"]])
def test_modules_with_one_weight_merge_each_their_own_adapter(base, x, names):
    weight = base.first.weight
    model = adapt(base, *names)
    adapted = model(x)
    model.merge_adapter()
    assert torch.allclose(model(x), adapted, atol=1e-6)
    model.unmerge_adapter()
    assert torch.equal(model(x), adapted)
    unloaded = model.unload()
    assert unloaded.first.weight is weight and unloaded.tied.weight is weight
