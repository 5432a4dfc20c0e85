"""Convolutions of any shape equal the chain applied to their unfolded weight."""

import itertools

import pytest
import torch
from accelerate import cpu_offload
from peft import HRAConfig as PeftHRAConfig
from peft import get_peft_model
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.adapter import HRAConv2d
from hra_diffusion.errors import TargetError
from hra_diffusion.householder import chain_matrix, factor

SHAPES = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2, "padding": 1},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": (2, 3), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "same", "dilation": 2, "bias": False},
    *(
        {"kernel_size": (1, 3), "padding": (0, 2), "padding_mode": mode}
        for mode in ("reflect", "replicate", "circular")
    ),
    {"kernel_size": 1, "padding": 1, "padding_mode": "reflect"},
]


def adapted(conv: nn.Conv2d, r: int = 4) -> HRAConv2d:
    layer = HRAConv2d(conv)
    layer.columns.put("a", torch.randn(layer.unfolded_size, r, dtype=conv.weight.dtype))
    layer.hra_u["a"].requires_grad_()
    layer.mixture = ((("a", 1.0),),)
    return layer


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_equal_the_naive_chain(shape, memory_format):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, **shape, dtype=torch.float64)
    layer = adapted(conv)
    x = torch.randn(2, 3, 8, 9, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    W = conv.weight.flatten(1) @ chain_matrix(layer.hra_u["a"])
    naive = conv._conv_forward(x, W.view_as(conv.weight), conv.bias)
    fast = layer(x)
    assert torch.allclose(fast, naive, rtol=0, atol=1e-10)
    inputs = (x, layer.hra_u["a"])
    expected = torch.autograd.grad(naive.sin().sum(), inputs)
    for mine, theirs in zip(torch.autograd.grad(fast.sin().sum(), inputs), expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_merged_convolution_gives_the_same_images(shape):
    conv = nn.Sequential(nn.Conv2d(3, 5, **shape))
    model = HRAModel(conv, HRAConfig(r=4, target_modules=["0"], init_weights=False))
    x = torch.randn(2, 3, 8, 9)
    expected = model(x)
    model.merge_adapter()
    assert torch.allclose(model(x), expected, atol=1e-5)


def test_square_convolutions_equal_those_of_peft():
    torch.manual_seed(0)
    convs = [nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1)) for _ in range(2)]
    convs[1].load_state_dict(convs[0].state_dict())
    mine = HRAModel(convs[0], HRAConfig(r=4, target_modules=["0"], init_weights=False))
    theirs = get_peft_model(convs[1], PeftHRAConfig(r=4, target_modules=["0"]))
    with torch.no_grad():
        theirs.base_model.model[0].hra_u["default"].copy_(convs[0][0].hra_u["default"])
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(mine(x), theirs(x), rtol=0, atol=1e-5)
    mine.merge_adapter()
    merged = theirs.merge_and_unload()[0].weight
    assert torch.allclose(convs[0][0].base_layer.weight, merged, rtol=0, atol=1e-5)


def test_an_image_is_convolved_without_a_batch_dimension():
    for kernel in (1, 3):
        layer = adapted(nn.Conv2d(3, 5, kernel))
        x = torch.randn(3, 8, 9)
        assert torch.allclose(layer(x), layer(x[None])[0], atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_images_train(kernel, autocast):
    layer = adapted(nn.Conv2d(3, 5, kernel, padding=kernel // 2))
    x = torch.randn(2, 3, 6, 6)
    expected = layer(x)
    if not autocast:
        layer, x = layer.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).abs().max() < 0.1
    y.float().sum().backward()
    assert layer.hra_u["a"].grad.dtype == torch.float32


def test_grouped_convolutions_are_refused():
    with pytest.raises(TargetError, match="Cannot adapt '0', a Conv2d of 2 groups"):
        HRAModel(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2)), HRAConfig(target_modules=["0"]))


def test_a_unet_with_every_kind_of_target_starts_at_its_base_and_trains(tiny_unet):
    inputs = (torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 16))
    expected = tiny_unet(*inputs).sample
    targets = ["proj_in", "proj_out", "to_q", "conv1", "conv_shortcut", "ff.net.0.proj"]
    model = HRAModel(tiny_unet, HRAConfig(r=4, target_modules=targets))
    sample = model(*inputs).sample
    assert torch.allclose(sample, expected, atol=1e-5)
    sample.square().mean().backward()
    columns = [columns for layer in model.adapted_layers().values() for columns in layer.hra_u.values()]
    assert {type(layer) for layer in model.adapted_layers().values()} >= {HRAConv2d}
    assert all(u.grad.isfinite().all() for u in columns)
    assert any(u.grad.abs().max() > 0 for u in columns)


def test_the_change_of_a_convolution_is_a_narrow_convolution():
    """The change of a convolution is a narrow convolution followed by a 1 × 1 one."""
    layer = adapted(nn.Conv2d(3, 5, 3, bias=False, dtype=torch.float64))
    x = torch.randn(1, 3, 7, 7, dtype=torch.float64)
    B, A = factor(layer.hra_u["a"]).low_rank_delta(layer.base_layer.weight.flatten(1))
    narrow = nn.functional.conv2d(x, A.reshape(4, 3, 3, 3))
    gain = nn.functional.conv2d(narrow, B.reshape(5, 4, 1, 1))
    assert torch.allclose(layer(x) - layer.base_layer(x), gain, atol=1e-12)
    assert list(itertools.chain(gain.shape)) == [1, 5, 5, 5]


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
@pytest.mark.parametrize("padding", [0, 3, (2, 1)])
def test_a_weight_offloaded_between_calls_is_never_read(padding, padding_mode):
    """Accelerate moves the weights of offloaded layers in only during a call."""
    layer = HRAConv2d(nn.Conv2d(3, 5, (3, 2), stride=2, padding=padding, padding_mode=padding_mode))
    layer.columns.put("a", torch.randn(18, 4, generator=torch.Generator().manual_seed(0)))
    layer.mixture = ((("a", 1.0),),)
    model, x = nn.Sequential(layer), torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)
        assert torch.allclose(
            expected,
            layer.base_layer._conv_forward(x, layer.merged_weight(layer.mixture), layer.base_layer.bias),
            rtol=0,
            atol=1e-5,
        )
        cpu_offload(model, execution_device="cpu")
        assert layer.base_layer.weight.is_meta
        assert torch.equal(model(x), expected)
