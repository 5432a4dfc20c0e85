"""HRA layers of PEFT with the plug-in keep their values and gain strengths, exact unmerging and zero columns."""

import copy

import pytest
import torch
from peft import HRAConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.hra.layer import HRALinear
from torch import nn

from hra_diffusion import peft_plugin
from hra_diffusion.householder import chain_matrix
from hra_diffusion.householder.geodesic import blend


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.act = nn.ReLU()
        self.lin = nn.Linear(6, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.lin(self.act(self.conv(x)).mean(dim=(2, 3)))))


@pytest.fixture
def plugin():
    peft_plugin.enable()
    yield peft_plugin
    peft_plugin.disable()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model(request):
    """Return a PEFT model with random adapters of 4 and 2 reflections."""
    torch.manual_seed(0)
    settings = {"target_modules": ["conv", "lin"], "init_weights": False, **getattr(request, "param", {})}
    model = get_peft_model(Net(), HRAConfig(r=4, **settings))
    model.add_adapter("other", HRAConfig(r=2, **settings))
    return model


def gradients(model, x):
    model.zero_grad()
    model(x).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("model", [{}, {"apply_GS": True}], indirect=True)
def test_values_gradients_and_merged_weights_equal_those_of_peft(model, x):
    theirs, their_gradients = model(x), gradients(model, x)
    their_weights = copy.deepcopy(model).merge_and_unload().lin.weight
    peft_plugin.enable()
    try:
        assert torch.allclose(model(x), theirs, rtol=0, atol=1e-5)
        for mine, expected in zip(gradients(model, x), their_gradients, strict=True):
            assert torch.allclose(mine, expected, rtol=0, atol=1e-4)
        assert torch.allclose(copy.deepcopy(model).merge_and_unload().lin.weight, their_weights, atol=1e-5)
    finally:
        peft_plugin.disable()
    assert torch.equal(model(x), theirs)


def test_disabling_restores_the_methods_of_peft():
    before = dict(vars(HRALinear))
    peft_plugin.enable()
    peft_plugin.enable()
    assert HRALinear.forward is not before["forward"]
    peft_plugin.disable()
    peft_plugin.disable()
    assert dict(vars(HRALinear)) == before


def test_several_active_adapters_equal_the_product_of_peft(model, x):
    model.base_model.set_adapter(["other", "default"])
    theirs = model(x)
    peft_plugin.enable()
    try:
        assert torch.allclose(model(x), theirs, rtol=0, atol=1e-5)
    finally:
        peft_plugin.disable()


def test_unmerging_is_bit_exact(plugin, model, x):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(x)
    for _ in range(20):
        model.merge_adapter()
        assert torch.allclose(model(x), expected, atol=1e-5)
        model.unmerge_adapter()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()


def test_adapters_merged_by_peft_are_unmerged_by_peft(model, x):
    expected = model(x)
    model.merge_adapter()
    peft_plugin.enable()
    try:
        model.unmerge_adapter()
        assert torch.allclose(model(x), expected, atol=1e-4)
    finally:
        peft_plugin.disable()


def test_adapters_merged_by_peft_are_not_merged_twice(model, x):
    model.base_model.set_adapter(["default", "other"])
    expected = model(x)
    model.merge_adapter(["default"])
    peft_plugin.enable()
    try:
        model.merge_adapter(["other"])
        assert torch.allclose(model(x), expected, atol=1e-5)
        model.unmerge_adapter()
        assert torch.allclose(model(x), expected, atol=1e-5)
    finally:
        peft_plugin.disable()


def test_adapters_unmerged_by_peft_are_active_again(model, x):
    expected = model(x)
    try:
        peft_plugin.enable()
        model.merge_adapter()
        peft_plugin.disable()
        model.unmerge_adapter()
        peft_plugin.enable()
        assert torch.allclose(model(x), expected, atol=1e-5)
    finally:
        peft_plugin.disable()


def test_a_merged_model_can_be_disabled(plugin, model, x):
    with model.disable_adapter():
        base = model(x)
    model.merge_adapter()
    with model.disable_adapter():
        assert torch.allclose(model(x), base, atol=1e-6)


def test_scaling_moves_along_the_geodesic(plugin, model, x):
    layer = model.base_model.model.lin
    columns = layer.hra_u["default"].detach()
    layer.set_scale("default", 0.5)
    layer.scale_layer(0.5)
    h = torch.randn(3, 6)
    expected = h @ (layer.weight @ chain_matrix(blend([columns], [0.25]))).mT + layer.bias
    assert torch.allclose(layer(h), expected, atol=1e-5)
    layer.unscale_layer(0.5)
    assert torch.allclose(
        layer(h), h @ (layer.weight @ chain_matrix(blend([columns], [0.5]))).mT + layer.bias, atol=1e-5
    )
    layer.unscale_layer()
    assert torch.allclose(layer(h), h @ (layer.weight @ chain_matrix(columns)).mT + layer.bias, atol=1e-5)


def test_scaled_adapters_use_the_present_columns(plugin, model, x):
    model.base_model.model.lin.set_scale("default", 0.5)
    model(x)
    state = {name: torch.randn_like(tensor) for name, tensor in get_peft_model_state_dict(model).items()}
    set_peft_model_state_dict(model, state)
    fresh = copy.deepcopy(model)
    layer = fresh.base_model.model.lin
    h = torch.randn(3, 6)
    blended = chain_matrix(blend([layer.hra_u["default"].detach()], [0.5]))
    expected = h @ (layer.weight @ blended).mT + layer.bias
    assert torch.allclose(model.base_model.model.lin(h), expected, atol=1e-5)


def test_deleting_an_adapter_deletes_its_scale(plugin, model, x):
    model.base_model.set_adapter("other")
    for layer in (model.base_model.model.lin, model.base_model.model.conv):
        layer.set_scale("other", 0.3)
    model.delete_adapter("other")
    model.add_adapter("other", HRAConfig(r=2, target_modules=["lin"], init_weights=False))
    model.set_adapter("other")
    layer, h = model.base_model.model.lin, torch.randn(3, 6)
    expected = h @ (layer.weight @ chain_matrix(layer.hra_u["other"])).mT + layer.bias
    assert torch.allclose(layer(h), expected, atol=1e-5)


def test_zero_columns_work(plugin):
    layer = get_peft_model(nn.Sequential(nn.Linear(6, 5)), HRAConfig(r=4, target_modules=["0"])).base_model.model[0]
    with torch.no_grad():
        layer.hra_u["default"][:, 1] = 0
    assert layer(torch.ones(2, 6)).isfinite().all()


def test_copies_of_a_peft_model_are_independent(plugin, model, x):
    expected = model(x)
    twin = copy.deepcopy(model)
    twin.base_model.model.lin.set_scale("default", 0.0)
    assert torch.equal(model(x), expected)
    assert not torch.allclose(twin(x), expected, atol=1e-4)


def test_diffusers_sets_the_strength_of_pefts_adapters(plugin, tiny_unet):
    unet = tiny_unet
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 16))
    base = unet(*inputs).sample
    unet.add_adapter(HRAConfig(r=4, target_modules=["to_q", "to_v", "conv1"], init_weights=False))
    full = unet(*inputs).sample
    unet.set_adapters(["default"], [0.0])
    assert torch.allclose(unet(*inputs).sample, base, atol=1e-6)
    unet.set_adapters(["default"], [0.5])
    half = unet(*inputs).sample
    assert not torch.allclose(half, base, atol=1e-3)
    assert not torch.allclose(half, full, atol=1e-3)
    unet.set_adapters(["default"], [1.0])
    assert torch.allclose(unet(*inputs).sample, full, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_their_dtype(plugin, model, x, dtype):
    model = model.to(dtype)
    assert model(x.to(dtype)).dtype == dtype
    layer = model.base_model.model.lin
    assert layer(torch.ones(2, 6)).dtype == torch.float32
