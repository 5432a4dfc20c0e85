"""Strength, means, padding, and the anchored Gram–Schmidt, on a whole model."""

import copy

import pytest
import torch
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.errors import ConfigError
from hra_diffusion.householder import chain_matrix

TARGETS = ("q", "v", "out")


@pytest.fixture
def model(net) -> HRAModel:
    """Return a model with random adapters a (r = 4, active), b (r = 2) and odd (r = 3)."""
    model = HRAModel(net, HRAConfig(r=4, target_modules=TARGETS, init_weights=False), "a")
    model.add_adapter("b", HRAConfig(r=2, target_modules=["v", "out"], init_weights=False))
    model.add_adapter("odd", HRAConfig(r=3, target_modules=["q"], init_weights=False))
    return model.eval()


def weights(model: HRAModel) -> list[torch.Tensor]:
    """Return the adapted weights W H, by merging."""
    model.merge_adapter()
    merged = [layer.base_layer.weight.detach().clone() for layer in model.adapted_layers().values()]
    model.unmerge_adapter()
    return merged


def close(a, b, tolerance: float = 1e-5) -> bool:
    return all(torch.allclose(tensor, other, rtol=0, atol=tolerance) for tensor, other in zip(a, b, strict=True))


def test_strength_0_is_the_base_and_strength_1_the_adapter_bit_by_bit(model, x):
    adapted = model(x)
    with model.disable_adapter():
        base = model(x)
    model.set_strength(0, "a")
    assert torch.equal(model(x), base)
    model.set_strength(0.5, "a")
    assert not torch.allclose(model(x), adapted, atol=1e-3)
    assert not torch.allclose(model(x), base, atol=1e-3)
    model.set_strength(1, "a")
    assert torch.equal(model(x), adapted)


@pytest.mark.parametrize("strength", [-1.5, 0.3, 1.7])
def test_every_strength_keeps_the_weights_singular_values(model, strength):
    model.set_strength(strength, "a")
    for layer, merged in zip(model.adapted_layers().values(), weights(model), strict=True):
        assert close([torch.linalg.svdvals(merged)], [torch.linalg.svdvals(layer.base_layer.weight)])


def test_the_unmerged_model_equals_the_merged_one_at_any_strength(model, x):
    model.set_adapters(["a", "b"], [0.4, 1.3])
    expected = model(x)
    model.merge_adapter()
    assert torch.allclose(model(x), expected, atol=1e-5)
    model.set_strength(0.9, "b")
    merged = model(x)
    model.unmerge_adapter()
    assert torch.allclose(model(x), merged, atol=1e-5)


def test_a_merged_adapter_at_strength_0_is_the_base(model, x):
    with model.disable_adapter():
        base = model(x)
    model.merge_adapter()
    model.set_strength(0, "a")
    assert torch.equal(model(x), base)


def test_the_restorer_restores_active_and_merged_adapters(model, x):
    model.set_adapters(["a", "b"], [0.5, 1.2], combine="mean")
    model.merge_adapter()
    expected, restore = model(x), model._restorer()
    model.unmerge_adapter()
    model.set_adapters(["b"], [0.1])
    assert not torch.allclose(model(x), expected, atol=1e-3)
    restore()
    assert torch.equal(model(x), expected)
    assert model.merged_adapters == ["a", "b"]


def test_an_odd_rank_has_strengths_0_and_1_only(model, x):
    model.set_adapter("odd")
    expected = model(x)
    for strength in (0.5, 2, -1):
        with pytest.raises(ConfigError, match=r"odd rank 3: .*0 or 1 only"):
            model.set_strength(strength, "odd")
    assert torch.equal(model(x), expected)
    model.set_strength(0, "odd")
    model.set_strength(1, "odd")
    with pytest.raises(ConfigError, match="odd number of reflections"):
        model.set_adapters(["a", "odd"], combine="mean")
    assert model.active_adapters == ["odd"]
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_that_is_not_finite_is_refused(model, strength):
    with pytest.raises(ConfigError, match="must be a finite number"):
        model.set_strength(strength, "a")


def test_a_strength_of_an_unknown_adapter_is_refused_with_the_known_names(model):
    with pytest.raises(ConfigError, match="known are a, b, odd"):
        model.set_strength(0.5)


def test_the_mean_is_independent_of_order_and_a_single_strength_gives_its_adapter(model):
    model.set_adapter("a")
    only_a = weights(model)
    model.set_adapters(["a", "b"], [0.7, 0.4], combine="mean")
    mean = weights(model)
    model.set_adapters(["b", "a"], [0.4, 0.7], combine="mean")
    assert close(weights(model), mean)
    model.set_adapters(["a", "b"], [1, 0], combine="mean")
    assert close(weights(model), only_a, 0)


def test_a_product_with_strengths_is_the_product_of_the_powers(model):
    model.set_adapters(["a", "b"], [0.5, 1], combine="product")
    layer = model.adapted_layers()["blocks.0.v"]
    half = layer.mixed_columns(((("a", 0.5),),))
    expected = layer.base_layer.weight @ chain_matrix(half) @ chain_matrix(layer.hra_u["b"])
    assert close([weights(model)[1]], [expected])
    assert close([chain_matrix(half) @ chain_matrix(half)], [chain_matrix(layer.hra_u["a"])])


def test_invalid_combinations_are_refused(model):
    with pytest.raises(ConfigError, match="'mean' or 'product'; found 'sum'"):
        model.set_adapters(["a", "b"], combine="sum")
    with pytest.raises(ConfigError, match="2 adapters need as many strengths; found 1"):
        model.set_adapters(["a", "b"], [1.0])
    with pytest.raises(ConfigError, match="can be active once only; found 'b', 'b'"):
        model.set_adapters(["b", "b"], [1.0, 0.5])


def test_inactive_adapters_are_merged_at_their_strengths(model, x):
    model.set_strength(0.5, "a")
    model.set_strength(0.7, "b")
    model.set_adapter("odd")
    active = copy.deepcopy(model)
    active.set_adapter(["a", "b"])
    model.merge_adapter(["a", "b"])
    assert torch.allclose(model(x), active(x), atol=1e-5)


def test_an_adapter_can_be_deleted_while_all_are_disabled(model, x):
    model.set_adapter("b")
    expected = model(x)
    model.set_adapter("a")
    model.merge_adapter()
    with model.disable_adapter():
        model.delete_adapter("a")
        model.delete_adapter("odd")
    assert (model.active_adapters, model.merged_adapters) == (["b"], [])
    assert torch.equal(model(x), expected)


def test_merging_disabled_adapters_is_refused(model):
    with model.disable_adapter(), pytest.raises(ConfigError, match="enable them first"):
        model.merge_adapter()


def test_blends_are_computed_again_when_columns_change(model, x):
    model.set_strength(0.5, "a")
    before = model(x)
    with torch.no_grad():
        model.adapted_layers()["blocks.0.q"].hra_u["a"].normal_()
    assert not torch.allclose(model(x), before, atol=1e-3)


def test_gradients_pass_through_an_adapter_at_another_strength_with_a_warning(model, x):
    model.set_strength(0.5, "a")
    x = x.requires_grad_()
    with pytest.warns(UserWarning, match="other than 1 are not trained: a"):
        model.train()(x).sum().backward()
    assert x.grad is not None


def test_padding_keeps_the_outputs_and_allows_swapping(model, x, net):
    expected = model(x)
    model.pad_adapter(8, "a")
    assert torch.allclose(model(x), expected, atol=1e-6)
    addresses = [layer.hra_u["a"].data_ptr() for layer in model.adapted_layers().values() if "a" in layer.hra_u]
    model.set_adapter("b")
    alone = model(x)
    model.set_adapter("a")
    model.swap_adapter(*model.adapter_state_dict("b"), "a")
    assert torch.allclose(model(x), alone, atol=1e-6)
    assert [layer.hra_u["a"].data_ptr() for layer in model.adapted_layers().values() if "a" in layer.hra_u] == addresses
    config, state = model.adapter_state_dict("a")
    assert config.r == 2
    assert {tensor.shape[1] for tensor in state.values()} == {2}


def test_a_swap_that_does_not_fit_changes_nothing(model, x):
    expected = model(x)
    for other in ("b", "odd"):
        model.set_adapter("a")
        with pytest.raises(ValueError, match=r"cannot be swapped for '(b|odd)': its rank is 4 of at most"):
            model.swap_adapter(*model.adapter_state_dict("a"), other)
    assert torch.equal(model(x), expected)
    with pytest.raises(ConfigError, match="cannot be padded to 2"):
        model.pad_adapter(2, "a")


def test_swapping_a_merged_adapter_changes_the_weights(model, x):
    model.swap_adapter(*model.adapter_state_dict("b"), "a")
    swapped = model(x)
    model.merge_adapter()
    config, state = model.adapter_state_dict("a")
    turned = {name: tensor.flip(0) for name, tensor in state.items()}
    model.swap_adapter(config, turned, "a")
    merged = model(x)
    model.unmerge_adapter()
    assert not torch.allclose(merged, swapped, atol=1e-2)
    assert torch.allclose(model(x), merged, atol=1e-5)


def test_an_adapter_activated_for_inference_trains_when_activated_again(model):
    model.set_adapter("a", inference_mode=True)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.set_adapters(["a"])
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_parameters_frozen_by_the_user_stay_frozen(model, x):
    frozen, *others = (parameter for parameter in model.parameters() if parameter.requires_grad)
    frozen.requires_grad = False
    with model.disable_adapter():
        model(x)
    model.set_strength(0.5, "a")
    model.set_strength(1.0, "a")
    restore = model._restorer()
    model.set_adapter("b")
    restore()
    assert not frozen.requires_grad
    assert all(parameter.requires_grad for parameter in others)


def test_the_adapter_that_replaces_a_deleted_one_trains(model):
    restore = model._restorer()
    model.set_adapter("b")
    model.delete_adapter("a")
    restore()
    assert model.active_adapters == ["b"]
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_change_changes_nothing(model, x, monkeypatch, error):
    def end(*_):
        raise error

    expected = model(x)
    with monkeypatch.context() as patch:
        patch.setattr("hra_diffusion.adapter.mixture.blend_chains", end)
        with pytest.raises(error):
            model.set_strength(0.5, "a")
    assert model.strengths["a"] == 1
    assert torch.equal(model(x), expected)


def test_an_interrupted_pass_does_not_change_the_next(model, x):
    handle = model.model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model(x)
    handle.remove()
    model.set_strength(0.0, "a")
    with model.disable_adapter():
        base = model(x)
    assert torch.equal(model(x), base)


def test_swapping_in_an_odd_rank_at_an_impossible_strength_is_refused(model, x):
    model.pad_adapter(4, "a")
    model.set_strength(0.5, "a")
    expected = model(x)
    with pytest.raises(ConfigError, match="odd rank 3"):
        model.swap_adapter(*model.adapter_state_dict("odd"), "a")
    assert torch.equal(model(x), expected)
    model.set_adapters(["a", "b"], [1, 1], combine="mean")
    expected = model(x)
    with pytest.raises(ConfigError, match="cannot take part in a mean"):
        model.swap_adapter(*model.adapter_state_dict("odd"), "a")
    assert torch.equal(model(x), expected)


def test_swapping_does_not_compile_again(model, x):
    model.pad_adapter(4, "a")
    torch._dynamo.reset()
    compiles = 0

    def backend(graph, _):
        nonlocal compiles
        compiles += 1
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            assert torch.allclose(compiled(x), model(x), atol=1e-6)
            model.swap_adapter(*model.adapter_state_dict("b"), "a")
    assert compiles == 1


def test_an_anchored_adapter_starts_at_the_base_trains_and_is_saved_as_a_plain_chain(net, x, tmp_path):
    base = copy.deepcopy(net)
    expected = net(x)
    model = HRAModel(net, HRAConfig(r=4, target_modules=TARGETS, apply_GS=True))
    assert torch.allclose(model(x), expected, atol=1e-5)
    trainable, _ = model.get_nb_trainable_parameters()
    assert trainable == 2 * 4 * (12 + 12 + 8)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    trained = model(x)
    assert (trained - expected).abs().max() > 1e-3
    for layer in model.adapted_layers().values():
        columns = layer.columns.chain("default")
        for half in (columns[:, :4], columns[:, 4:]):
            assert close([half.mT @ half], [torch.eye(4)])
    assert model.orthogonality_penalty() == 0
    model.save_pretrained(tmp_path)
    again = HRAModel.from_pretrained(base, tmp_path)
    assert again.peft_config["default"].r == 8
    assert not again.peft_config["default"].apply_GS
    assert torch.allclose(again(x), trained, atol=1e-5)
    model.set_strength(0.5)
    assert not torch.allclose(model.eval()(x), trained, atol=1e-4)


def test_more_orthogonal_columns_than_dimensions_are_refused(net):
    with pytest.raises(
        ConfigError, match="At most 8 columns can be orthogonal in a layer of 8 inputs; apply_GS has r = 10"
    ):
        HRAModel(net, HRAConfig(r=10, target_modules=TARGETS, apply_GS=True))
    assert type(net.blocks[0]["q"]) is nn.Linear


def test_the_penalty_separates_a_pair(net):
    model = HRAModel(net, HRAConfig(r=2, target_modules=["q"]))
    start = model.orthogonality_penalty()
    assert start.item() == pytest.approx(2 * 2**0.5)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-1)
    with torch.no_grad():
        for layer in model.adapted_layers().values():
            layer.hra_u["default"].add_(torch.randn(12, 2) * 0.1)
    for _ in range(20):
        optimizer.zero_grad()
        model.orthogonality_penalty().backward()
        optimizer.step()
    assert model.orthogonality_penalty() < start / 2


def test_merged_adapters_activate_their_biases_and_modules(net, x):
    """Adapters p (active) and q train the head; p also trains biases."""
    model = HRAModel(net, HRAConfig(target_modules=["q"], bias="all", modules_to_save=["head"]), "p")
    model.add_adapter("q", HRAConfig(target_modules=["q"], init_weights=False, modules_to_save=["head"]))
    with torch.no_grad():
        for name in ("p", "q"):
            for parameter in model._injection.trained_parameters(name):
                parameter += 0.3 * torch.randn_like(parameter)
    expected = {}
    for name in ("p", "q"):
        model.set_adapter(name)
        expected[name] = model(x)
    model.set_adapter("p")
    model.merge_adapter(["q"])
    assert torch.allclose(model(x), expected["q"], atol=1e-5)
    model.unmerge_adapter()
    assert torch.allclose(model(x), expected["p"], atol=1e-6)
    model.set_adapter("q")
    assert torch.allclose(model.merge_and_unload(adapter_names=["p"])(x), expected["p"], atol=1e-5)


def test_an_adapter_is_merged_once(model, x):
    with pytest.raises(ConfigError, match="can be merged once only; found 'a', 'a'"):
        model.merge_adapter(["a", "a"])
    model.set_adapters(["a", "b"], [0.5, 0.5], combine="mean")
    expected = model(x)
    model.merge_adapter()
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter(["a"])
    assert torch.allclose(model(x), expected, atol=1e-5)
