"""Adapters act in evaluation mode as in training mode where torch reads weights instead of calling layers."""

import pytest
import torch
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.errors import TargetError


def encoder(count: int = 2) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, count).eval()


def rotated(model: nn.Module, **settings) -> HRAModel:
    torch.manual_seed(1)
    return HRAModel(model, HRAConfig(r=2, init_weights=False, **settings)).eval()


X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
PADDING = torch.tensor([[False, False, False], [False, False, True]])


@pytest.mark.parametrize("mask", [None, PADDING])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("targets", ["all-linear", ["layers.1.linear2"]])
def test_an_adapted_transformer_encoder_gives_the_same_in_both_modes(mask, grad, targets):
    model = rotated(encoder(), target_modules=targets)
    kept = slice(None) if mask is None else ~mask
    with torch.set_grad_enabled(grad):
        base = encoder().train()(X, src_key_padding_mask=mask)[kept]
        evaluated = model(X, src_key_padding_mask=mask)[kept]
        trained = model.train()(X, src_key_padding_mask=mask)[kept]
    torch.testing.assert_close(evaluated, trained)
    assert (evaluated - base).abs().max() > 0.05


def test_only_fast_paths_around_adapted_layers_are_off_and_unloading_restores_them():
    base = nn.ModuleList([encoder(), encoder()]).eval()
    before = [{name: value for name, value in vars(module).items() if name[0] != "_"} for module in base.modules()]
    model = rotated(base, target_modules=["0.layers.1.linear1"])
    assert [stack.use_nested_tensor for stack in base] == [False, True]
    assert [layer.activation_relu_or_gelu for stack in base for layer in stack.layers] == [1, 0, 1, 1]
    model.add_adapter("b", HRAConfig(r=2, target_modules=["1.layers.0.linear1"]))
    model.delete_adapter("default")
    assert [stack.use_nested_tensor for stack in base] == [True, False]
    model.unload()
    assert before == [
        {name: value for name, value in vars(module).items() if name[0] != "_"} for module in base.modules()
    ]


@pytest.mark.parametrize("name", ["layers.0.norm1", "layers.0.self_attn.out_proj"])
def test_a_trained_copy_of_a_module_whose_weights_are_read_acts_in_both_modes(name):
    model = rotated(encoder(), target_modules=["layers.1.linear1"], modules_to_save=[name])
    base = model(X).detach()
    with torch.no_grad():
        for wrapper in model.model.modules():
            for copied in getattr(wrapper, "copies", {}).values():
                copied.weight.mul_(3.0)
    evaluated = model(X)
    assert (evaluated - base).abs().max() > 0.05
    torch.testing.assert_close(evaluated, model.train()(X))


def test_the_output_projection_of_multihead_attention_is_refused_by_name():
    with pytest.raises(TargetError, match=r"self_attn\.out_proj'.*its weight is read"):
        rotated(encoder(), target_modules=["out_proj"])
