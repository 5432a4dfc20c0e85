"""Laws of an adapted model: equal to PEFT's, equal to its base at the start, and removable without a trace."""

import copy

import pytest
import torch
from peft import HRAConfig as PeftHRAConfig
from peft import get_peft_model
from torch import nn

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.adapter import HRALinear
from hra_diffusion.adapter.targets import UNET_ATTENTION, UNET_FULL
from hra_diffusion.errors import AdapterFileError, ConfigError, HRAError, TargetError
from hra_diffusion.householder import chain_matrix

TARGETS = ("q", "v", "out")


def scatter(model: HRAModel, seed: int = 5) -> None:
    """Add random numbers to all columns."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.adapted_layers().values():
            for columns in layer.hra_u.values():
                columns.add_(torch.randn(columns.shape, generator=generator))


def pefts(model: nn.Module, mine: HRAModel, **settings) -> nn.Module:
    """Return `model` adapted by PEFT with the columns of `mine`."""
    theirs = get_peft_model(model, PeftHRAConfig(**settings))
    with torch.no_grad():
        for name, layer in mine.adapted_layers().items():
            theirs.get_submodule(f"base_model.model.{name}").hra_u["default"].copy_(layer.hra_u["default"])
    return theirs


def test_outputs_and_gradients_equal_those_of_peft(net, x):
    settings = {"r": 4, "target_modules": list(TARGETS)}
    base = copy.deepcopy(net)
    mine = HRAModel(net, HRAConfig(**settings))
    scatter(mine)
    theirs = pefts(base, mine, **settings)
    assert torch.allclose(mine(x), theirs(x), rtol=0, atol=1e-5)
    mine(x).square().mean().backward()
    theirs(x).square().mean().backward()
    for name, layer in mine.adapted_layers().items():
        expected = theirs.get_submodule(f"base_model.model.{name}").hra_u["default"].grad
        assert torch.allclose(layer.hra_u["default"].grad, expected, rtol=0, atol=1e-5)


def test_outputs_and_gradients_equal_the_naive_chain_in_float64(net, x):
    layer = HRALinear(net.double().head)
    layer.columns.put("a", torch.randn(12, 6, dtype=torch.float64))
    layer.hra_u["a"].requires_grad_()
    layer.mixture = ((("a", 1.0),),)
    x = x.double().requires_grad_()
    inputs = (x, layer.hra_u["a"])
    naive = x @ chain_matrix(layer.hra_u["a"]).mT @ net.head.weight.mT + net.head.bias
    assert torch.allclose(layer(x), naive, rtol=0, atol=1e-10)
    expected = torch.autograd.grad(naive.sin().sum(), inputs)
    for mine, theirs in zip(torch.autograd.grad(layer(x).sin().sum(), inputs), expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_training_starts_at_the_base_model(net, x, dtype):
    net, x = net.to(dtype), x.to(dtype)
    expected = net(x)
    adapted = HRAModel(net, HRAConfig(r=8, target_modules=TARGETS))(x)
    assert adapted.dtype == dtype
    assert (adapted - expected).abs().max() < (1e-5 if dtype != torch.bfloat16 else 1e-1)


def test_training_changes_only_the_adapter(net, x):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model = HRAModel(net, HRAConfig(r=4, target_modules=TARGETS))
    start = model(x).detach()
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()
    assert (model(x) - start).abs().max() > 1e-3
    model.unload()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_unload_restores_the_same_modules_parameters_and_flags(net, x):
    net.norm.requires_grad_(False)
    modules, parameters = list(net.named_modules()), list(net.named_parameters())
    flags = [parameter.requires_grad for _, parameter in parameters]
    expected = net(x)
    model = HRAModel(net, HRAConfig(target_modules=TARGETS))
    assert [name for name, _ in net.named_modules()] != [name for name, _ in modules]
    assert model.unload() is net
    assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(modules, net.named_modules(), strict=True))
    assert all(a[0] == b[0] and a[1] is b[1] for a, b in zip(parameters, net.named_parameters(), strict=True))
    assert [parameter.requires_grad for parameter in net.parameters()] == flags
    assert torch.equal(net(x), expected)


def test_a_failed_injection_leaves_the_model_unchanged(net):
    before = str(net)
    with pytest.raises(TargetError, match=r"Cannot adapt 'norm', a LayerNorm"):
        HRAModel(net, HRAConfig(target_modules=["q", "norm"]))
    assert str(net) == before
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_only_the_columns_train_and_stay_in_float32_after_casts(net, x):
    model = HRAModel(net.to(torch.bfloat16), HRAConfig(target_modules=TARGETS))
    for cast in (model, model.to(torch.float16), model.to(torch.bfloat16), model.half()):
        trainable = [p for p in cast.parameters() if p.requires_grad]
        assert len(trainable) == 6
        assert all(p.dtype == torch.float32 for p in trainable)
    model.to(torch.bfloat16)(x.bfloat16()).sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_autocasting_trains_a_float32_model_in_bfloat16(net, x):
    model = HRAModel(net, HRAConfig(target_modules=TARGETS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_the_adapted_model_has_the_attributes_of_the_model(net):
    model = HRAModel(net, HRAConfig(target_modules=["q"]))
    assert model.norm is net.norm
    assert model.blocks[0]["q"].in_features == 12
    assert model.blocks[0]["q"].weight is model.blocks[0]["q"].base_layer.weight
    with pytest.raises(AttributeError, match="nonsense"):
        _ = model.nonsense


def test_disabled_adapters_give_the_base_model(net, x):
    expected = net(x)
    model = HRAModel(net, HRAConfig(target_modules=TARGETS))
    scatter(model)
    adapted = model(x)
    with model.disable_adapter():
        assert torch.equal(model(x), expected)
    assert torch.equal(model(x), adapted)
    assert not torch.allclose(adapted, expected, atol=1e-3)


def test_merging_gives_the_same_outputs_and_unmerging_the_same_bits(net, x):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    parameter = net.blocks[0]["q"].weight
    model = HRAModel(net, HRAConfig(target_modules=TARGETS))
    scatter(model)
    adapted = model(x)
    for _ in range(1000):
        model.merge_adapter()
        model.unmerge_adapter()
    model.merge_adapter(safe_merge=True)
    assert torch.allclose(model(x), adapted, atol=1e-5)
    assert not torch.equal(net.blocks[0]["q"].base_layer.weight, before["blocks.0.q.weight"])
    model.unload()
    assert net.blocks[0]["q"].weight is parameter
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_merged_weights_equal_those_of_peft(net):
    settings = {"r": 4, "target_modules": list(TARGETS)}
    base = copy.deepcopy(net)
    mine = HRAModel(net, HRAConfig(**settings))
    scatter(mine)
    theirs = pefts(base, mine, **settings).merge_and_unload()
    mine.merge_adapter()
    for name, layer in mine.adapted_layers().items():
        assert torch.allclose(layer.base_layer.weight, theirs.get_submodule(name).weight, atol=1e-5)


def test_merging_weights_that_are_not_finite_is_refused_and_changes_nothing(net):
    model = HRAModel(net, HRAConfig(target_modules=TARGETS))
    weights = [layer.base_layer.weight for layer in model.adapted_layers().values()]
    with torch.no_grad():
        net.blocks[1]["v"].hra_u["default"].fill_(float("nan"))
    with pytest.raises(HRAError, match=r"not finite, in blocks\.1\.v"):
        model.merge_adapter(safe_merge=True)
    assert all(
        layer.base_layer.weight is weight
        for layer, weight in zip(model.adapted_layers().values(), weights, strict=True)
    )


def test_several_active_adapters_are_the_ordered_product(net, x):
    model = HRAModel(net, HRAConfig(r=4, target_modules=["q", "v"]), "a")
    model.add_adapter("b", HRAConfig(r=2, target_modules=["v", "out"]))
    scatter(model)
    model.set_adapter(["a", "b"])
    layer = net.blocks[0]["v"]
    H = chain_matrix(layer.hra_u["a"]) @ chain_matrix(layer.hra_u["b"])
    assert torch.allclose(layer(x), x @ (layer.weight @ H).mT, atol=1e-5)
    both = model(x)
    model.set_adapter(["b", "a"])
    assert not torch.allclose(model(x), both, atol=1e-3)
    model.set_adapter("a")
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        f"model.blocks.{i}.{module}.hra_u_a" for i in range(2) for module in "qv"
    ]
    model.delete_adapter("a")
    assert model.active_adapters == ["b"]
    assert isinstance(net.blocks[0]["q"], nn.Linear)


def test_an_unknown_adapter_is_refused_with_the_nearest_name(net):
    model = HRAModel(net, HRAConfig(target_modules=["q"]), "mine")
    methods = (model.set_adapter, model.set_adapters, model.merge_adapter)
    for method in (*methods, lambda name: model.set_strength(0.5, name)):
        with pytest.raises(ConfigError, match="no adapter named 'yours'; known are mine"):
            method("yours")
        with pytest.raises(ConfigError, match="no adapter named 'mien': did you mean 'mine'"):
            method("mien")
    with pytest.raises(ConfigError, match="Adapter mien does not exist: did you mean 'mine'"):
        model.delete_adapter("mien")


@pytest.mark.parametrize("name", ["", "a.b", "../a", "a/b", "nul\0", "line\n"])
def test_invalid_adapter_names_are_refused(net, name):
    with pytest.raises(ConfigError, match="cannot name an adapter"):
        HRAModel(net, HRAConfig(target_modules=["q"]), name)
    assert type(net.blocks[0]["q"]) is nn.Linear


def test_adapting_an_adapted_model_is_refused(net):
    model = HRAModel(net, HRAConfig(target_modules=["q"]))
    for already in (model, net):
        with pytest.raises(ConfigError, match="has HRA adapters already"):
            HRAModel(already, HRAConfig(target_modules=["q"]))
    assert model.adapted_layers()


def test_an_odd_rank_warns_about_its_start(net):
    with pytest.warns(UserWarning, match="r = 3 is odd"):
        HRAModel(net, HRAConfig(r=3, target_modules=["q"]))


def test_a_generator_makes_the_start_reproducible(net):
    starts = []
    for _ in range(2):
        model = HRAModel(net, HRAConfig(target_modules=["q"]), generator=torch.Generator().manual_seed(7))
        starts.append(net.blocks[1]["q"].hra_u["default"].detach().clone())
        model.unload()
    assert torch.equal(*starts)


@pytest.mark.parametrize(("r", "targets", "expected"), [(7, UNET_ATTENTION, 696_192), (8, UNET_ATTENTION, 795_648)])
def test_stable_diffusion_1_5_has_the_number_of_parameters_of_the_paper(r, targets, expected):
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    model = HRAModel(unet, HRAConfig(r=r, target_modules=targets, init_weights=False))
    assert model.get_nb_trainable_parameters() == (expected, 859_520_964 + expected)


def test_the_code_on_pefts_page_adapts_diffusion_models(tiny_unet, tiny_clip):
    sample, steps, tokens = torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.tensor([[1, 2, 3]])
    hidden = tiny_clip(tokens).last_hidden_state
    expected = tiny_unet(sample, steps, hidden).sample
    text_encoder = HRAModel(
        tiny_clip, HRAConfig(r=8, target_modules=["k_proj", "q_proj", "v_proj", "out_proj", "fc1", "fc2"]), "default"
    )
    attention = [target for target in UNET_FULL if not target.startswith("proj")]
    unet = HRAModel(tiny_unet, HRAConfig(r=8, target_modules=attention), "default")
    assert torch.allclose(text_encoder(tokens).last_hidden_state, hidden, atol=1e-5)
    assert torch.allclose(unet(sample, steps, hidden).sample, expected, atol=1e-5)
    assert unet.config is tiny_unet.config
    assert unet.dtype == torch.float32


def test_an_adapted_model_can_be_copied_and_its_state_dict_loaded(net, x):
    model = HRAModel(net, HRAConfig(target_modules=TARGETS))
    scatter(model)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    fresh = HRAModel(type(net)(), HRAConfig(target_modules=TARGETS))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(net, x, use_reentrant):
    from torch.utils.checkpoint import checkpoint

    model = HRAModel(net, HRAConfig(target_modules=TARGETS))
    scatter(model)
    x = x.requires_grad_()
    gradients = []
    for run in (model, lambda value: checkpoint(model, value, use_reentrant=use_reentrant)):
        model.zero_grad()
        run(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("settings", [{"modules_to_save": ["head"]}, {"bias": "all"}])
def test_trained_values_that_overflow_in_the_model_s_precision_are_refused(net, settings):
    model = HRAModel(net, HRAConfig(target_modules=["q"], **settings))
    config, tensors = model.adapter_state_dict()
    name = next(name for name in tensors if not name.endswith("hra_u"))
    half = model.unload().half()
    with pytest.raises(AdapterFileError, match=r"not finite in the precision of the model: .*bias|head"):
        HRAModel(half, config, state_dict=tensors | {name: torch.full_like(tensors[name], 1e5)})
    HRAModel(half, config, state_dict=tensors)
