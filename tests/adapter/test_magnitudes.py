"""Magnitudes: W' = diag(m) W H, from m = 1."""

import copy

import pytest
import torch
from torch import nn

from hra_diffusion import HRAConfig
from hra_diffusion.errors import AdapterFileError
from hra_diffusion.model import HRAModel
from tests.models import Net

LAYERS = {
    "linear": (nn.Linear(6, 5), (3, 6)),
    "linear without bias": (nn.Linear(6, 5, bias=False), (2, 3, 6)),
    "1 × 1": (nn.Conv2d(6, 5, 1), (2, 6, 4, 4)),
    "convolution": (nn.Conv2d(4, 5, (3, 2), stride=2, padding=1, padding_mode="reflect"), (2, 4, 7, 6)),
    "without batch": (nn.Conv2d(4, 5, 3), (4, 7, 6)),
}


@pytest.fixture(params=LAYERS)
def case(request):
    """A layer alone in a model, and an input, in float64."""
    layer, shape = LAYERS[request.param]
    torch.manual_seed(0)
    return nn.Sequential(copy.deepcopy(layer)).double(), torch.randn(shape, dtype=torch.float64)


def adapted(model, seed=1, *, name="default", r=4, **settings):
    """Add an adapter with random columns and magnitudes."""
    config = HRAConfig(r=r, target_modules=["0"], use_magnitude=True, **settings)
    if isinstance(model, HRAModel):
        model.add_adapter(name, config)
    else:
        model = HRAModel(model, config, name)
    move(model, name, seed)
    return model


@torch.no_grad()
def move(model, name="default", seed=1):
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if key.endswith(f"_{name}") and "anchor" not in key:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def dense(model, *names):
    """The weight diag(m) W H of the product of adapters, by its definition."""
    layer = next(iter(model.adapted_layers().values()))
    W, m = layer.unfold_weight(layer.original_weight()), 1.0
    for name in names:
        m = m * layer._parameters[f"hra_log_magnitude_{name}"].exp().unsqueeze(1)
        for u in layer.hra_u[name].unbind(1):
            u = u / u.norm()
            W = W - 2 * torch.outer(W @ u, u)
    return layer.fold_weight(m * W)


def test_it_starts_at_the_base_model_and_multiplies_the_rows(case):
    base, x = case
    before = base(x)
    model = HRAModel(base, HRAConfig(r=4, target_modules=["0"], use_magnitude=True))
    assert torch.allclose(model(x), before)
    move(model)
    twin = copy.deepcopy(model.unload()[0])
    model = adapted(base)
    twin.weight.data = dense(model, "default")
    assert torch.allclose(model(x), twin(x))
    assert not torch.allclose(model(x), before, atol=1e-2)


def test_gradients_are_those_of_the_definition(case):
    base, x = case
    model = adapted(base)
    (bias,) = [p for n, p in base.named_parameters() if n.endswith("bias")] or [None]
    names = ("hra_u_default", "hra_log_magnitude_default")
    layer = model.adapted_layers()["0"]
    parameters = [layer._parameters[name] for name in names]
    ours = torch.autograd.grad(model(x).sin().sum(), parameters)
    twin = copy.deepcopy(layer.base_layer)
    state = {"weight": dense(model, "default")} | ({} if bias is None else {"bias": bias})
    theirs = torch.autograd.grad(torch.func.functional_call(twin, state, x).sin().sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other)


def test_merging_is_exact_and_undone_bit_by_bit(case):
    base, x = case
    weight, before, original = base[0].weight, base[0].weight.clone(), base(x)
    model = adapted(base)
    expected = model(x)
    model.merge_adapter()
    assert torch.allclose(model(x), expected)
    model.unmerge_adapter()
    assert torch.equal(model(x), expected)
    with model.disable_adapter():
        assert torch.equal(model(x), original)
    assert model.unload()[0].weight is weight
    assert torch.equal(weight, before)


def test_strengths_products_and_means(case):
    base, x = case
    model = adapted(adapted(base, 1, name="a"), 2, name="b")
    layer = model.adapted_layers()["0"]
    a, b = (layer._parameters[f"hra_log_magnitude_{name}"] for name in "ab")

    def norms():
        model.merge_adapter()
        weight = layer.base_layer.weight.flatten(1).norm(dim=1)
        model.unmerge_adapter()
        return weight / base_norms

    base_norms = layer.base_layer.weight.flatten(1).norm(dim=1)
    model.set_adapter(["a", "b"])
    twin = copy.deepcopy(layer.base_layer)
    twin.weight.data = dense(model, "a", "b")
    assert torch.allclose(model(x), twin(x))
    assert torch.allclose(norms(), (a + b).exp())
    model.set_adapters(["a", "b"], [0.5, -0.3])
    assert torch.allclose(norms(), (0.5 * a - 0.3 * b).exp())
    model.set_adapters(["a", "b"], [0.0, 1.0])
    assert torch.allclose(norms(), b.exp())
    model.set_adapters([])
    assert torch.equal(model(x), base(x))


def test_rows_of_a_mixed_batch_have_their_adapters_magnitudes(case):
    base, x = case
    if x.dim() == 3 and isinstance(base[0], nn.Conv2d):
        pytest.skip("an example without a batch")
    model = adapted(adapted(base, 1, name="a"), 2, name="b")
    names = ["a", "__base__", "b"][: len(x)]
    mixed = model(x, adapter_names=names)
    for row, name in enumerate(names):
        model.set_adapters([] if name == "__base__" else name)
        assert torch.allclose(mixed[row], model(x)[row])


@pytest.mark.parametrize("settings", [{}, {"apply_GS": True}, {"rank_pattern": {"v": 2}}])
def test_a_saved_adapter_is_loaded_swapped_and_restored_with_its_magnitudes(settings, tmp_path):
    def make(seed):
        torch.manual_seed(0)
        model = HRAModel(Net(), HRAConfig(r=4, target_modules=["q", "v"], use_magnitude=True, **settings))
        move(model, seed=seed)
        return model

    x, first, second = torch.randn(4, 12), make(1), make(2)
    first.save_pretrained(tmp_path)
    loaded = HRAModel.from_pretrained(second.unload(), tmp_path)
    assert torch.allclose(loaded(x), first(x), atol=1e-6)
    other = make(3)
    if not settings.get("apply_GS"):
        other.swap_adapter(*first.adapter_state_dict())
        assert torch.allclose(other(x), first(x), atol=1e-6)
        plain = HRAModel(Net(), HRAConfig(r=2, target_modules=["q", "v"]))
        other.swap_adapter(*plain.adapter_state_dict())
        assert not any(layer.magnitudes["default"].any() for layer in other.adapted_layers().values())
        with pytest.raises(AdapterFileError, match="magnitudes"):
            plain.swap_adapter(*first.adapter_state_dict())
    other = make(3)
    other.load_adapter(tmp_path, is_trainable=True)
    assert torch.allclose(other(x), first(x), atol=1e-6)


def test_files_without_magnitudes_for_a_layer_are_refused():
    model = HRAModel(Net(), HRAConfig(r=4, target_modules=["q", "v"], use_magnitude=True))
    config, tensors = model.adapter_state_dict()
    tensors.pop("blocks.0.q.hra_log_magnitude")
    with pytest.raises(AdapterFileError, match=r"magnitudes.*blocks\.0\.q"):
        HRAModel(model.unload(), config, state_dict=tensors)
    with pytest.raises(AdapterFileError, match=r"hra_log_magnitude"):
        HRAModel(Net(), HRAConfig(r=4, target_modules=["q", "v"]), state_dict=tensors)


def test_a_plain_adapter_has_no_key_that_peft_lacks():
    assert not {"use_magnitude", "rank_pattern"} & HRAConfig().to_peft().keys()
    assert HRAConfig.from_peft(HRAConfig(use_magnitude=True).to_peft()).use_magnitude


@pytest.mark.parametrize(("dtype", "change"), [(torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_magnitudes_are_not_rounded_in_half_precision(dtype, change):
    config = HRAConfig(r=4, target_modules=["0"], use_magnitude=True)
    model = HRAModel(nn.Sequential(nn.Linear(64, 256, bias=False, dtype=dtype)), config)
    layer, x = model.adapted_layers()["0"], torch.randn(512, 64, dtype=dtype)
    assert layer.magnitudes["default"].dtype == torch.float32
    with torch.no_grad():
        before = model(x)
        layer.magnitudes["default"].add_(change)
        after = model(x)
    assert after.dtype == dtype
    ratio = (after.double() * before.double()).sum() / before.double().square().sum()
    assert ratio.item() == pytest.approx(1 + change, rel=change / 10)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.float()(x.float()).dtype == torch.bfloat16


def test_an_offloaded_bias_is_found():
    from accelerate import cpu_offload

    torch.manual_seed(0)
    model = adapted(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)))
    conv = adapted(nn.Sequential(nn.Conv2d(4, 5, 3, padding=2, padding_mode="reflect")))
    for part, x in ((model, torch.randn(3, 6)), (conv, torch.randn(2, 4, 7, 6))):
        part.requires_grad_(False)
        expected = part(x)
        cpu_offload(part.model, execution_device="cpu")
        assert part.adapted_layers()["0"].base_layer.bias.is_meta
        assert torch.allclose(part(x), expected, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_model_follows_trained_magnitudes_and_strengths():
    model, x = adapted(nn.Sequential(nn.Linear(6, 5))).eval(), torch.randn(3, 6)
    compiled = torch.compile(model.model, backend="eager", fullgraph=True)
    for strength in (1.0, 0.5, 0.7, 0.2, -0.3):
        model.set_strength(strength)
        assert torch.allclose(compiled(x), model(x), atol=1e-6)
    move(model, seed=5)
    model.set_strength(1.0)
    assert torch.allclose(compiled(x), model(x), atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 100.0, -11.0])
def test_magnitudes_out_of_their_range_are_refused_and_nothing_changes(value):
    model = adapted(nn.Sequential(nn.Linear(6, 5)))
    config, tensors = model.adapter_state_dict()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["0.hra_log_magnitude"][3] = value
    for change in (model.swap_adapter, lambda *state: model.add_adapter("b", state[0], state_dict=state[1])):
        with pytest.raises(AdapterFileError, match="logarithms of magnitudes are not numbers from −10 to 10: 0"):
            change(config, tensors)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
