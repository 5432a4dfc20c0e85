"""The start from a gradient: the planes of the skew part of Wᵀ ∂L/∂W, at the base model."""

import copy

import pytest
import torch
from torch import nn

from hra_diffusion import HRAConfig
from hra_diffusion.adapter.gradient_start import initialize_from_gradient
from hra_diffusion.errors import ConfigError, DivergedError
from hra_diffusion.householder.chain import chain_matrix, unit_columns
from hra_diffusion.model import HRAModel

RANK = 4
INPUTS = {"linear": (3, 4, 12), "1 × 1": (3, 12, 4, 3), "as wide as deep": (3, 12, 2, 12)}


@pytest.fixture(params=INPUTS)
def case(request):
    """A layer, three batches and their targets, in float64."""
    torch.manual_seed(0)
    shape = INPUTS[request.param]
    layer = nn.Linear(12, 9) if request.param == "linear" else nn.Conv2d(12, 9, 1)
    base = nn.Sequential(layer).double()
    batches = [torch.randn(shape, dtype=torch.float64) for _ in range(3)]
    return base, batches, [torch.randn_like(base(x)) for x in batches]


def losses(model, batches, targets):
    return [(model(x) - target).square().mean() for x, target in zip(batches, targets, strict=True)]


def skew_gradient(base, batches, targets):
    """K = ½ (A − Aᵀ), A = Wᵀ ∂L/∂W, by its definition."""
    (gradient,) = torch.autograd.grad(sum(losses(base, batches, targets)), [base[0].weight])
    A = base[0].weight.flatten(1).mT @ gradient.flatten(1)
    return (A - A.mT) / 2


def test_the_pairs_are_in_the_largest_planes_and_the_model_stays_the_same(case):
    base, batches, targets = case
    before, K = [base(x).detach() for x in batches], skew_gradient(base, batches, targets)
    model = HRAModel(base, HRAConfig(r=RANK, target_modules=["0"]))

    def backward(index):
        losses(model, batches, targets)[index].backward()

    assert initialize_from_gradient(model, backward, batches=3) == ["0"]
    for x, output in zip(batches, before, strict=True):
        assert torch.allclose(model(x), output)
    u = unit_columns(model.adapted_layers()["0"].columns["default"].detach())
    assert torch.equal(u[:, ::2], u[:, 1::2])
    largest = torch.linalg.svdvals(K)[[0, 2]]  # singular values come in pairs
    assert torch.allclose((K @ u[:, ::2]).norm(dim=0), largest, rtol=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_first_step_decreases_the_loss_more_than_from_random_pairs():
    torch.manual_seed(0)
    base, x = nn.Linear(32, 32), torch.randn(64, 32)
    with torch.no_grad():
        target = base(torch.cat([-x[:, 1:2], x[:, :1], x[:, 2:]], dim=1))  # a quarter turn of one plane

    def first_decrease(from_gradient):
        torch.manual_seed(1)
        model = HRAModel(nn.Sequential(copy.deepcopy(base)), HRAConfig(r=2, target_modules=["0"]))

        def loss():
            return (model(x) - target).square().mean()

        if from_gradient:
            initialize_from_gradient(model, lambda _: loss().backward(), batches=1)
        columns, before = model.adapted_layers()["0"].columns["default"], loss()
        (gradient,) = torch.autograd.grad(before, [columns])
        with torch.no_grad():
            columns.sub_(0.1 * gradient / gradient.norm() * columns.norm())
            return (before - loss()).item()

    assert first_decrease(True) > 3 * first_decrease(False) > 0


def test_checkpointed_layers_give_the_same_start():
    torch.manual_seed(0)
    base, x = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), torch.randn(5, 6)
    found = []
    for checkpointed in (False, True):
        model = HRAModel(base, HRAConfig(r=2, target_modules=["0", "2"]), generator=torch.Generator().manual_seed(0))

        def backward(_, model=model, checkpointed=checkpointed):
            run = torch.utils.checkpoint.checkpoint
            (run(model.model, x, use_reentrant=False) if checkpointed else model(x)).square().sum().backward()

        initialize_from_gradient(model, backward, batches=1, generator=torch.Generator().manual_seed(2))
        found.append([layer.columns["default"].detach().clone() for layer in model.adapted_layers().values()])
        model.unload()
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*found, strict=True))


def test_what_has_no_pairs_is_refused():
    def make(**settings):
        return HRAModel(nn.Sequential(nn.Linear(6, 6)), HRAConfig(r=2, target_modules=["0"], **settings))

    x = torch.randn(5, 6)
    with pytest.raises(ConfigError, match="apply_GS"):
        initialize_from_gradient(make(apply_GS=True), lambda _: None)
    with pytest.raises(ConfigError, match="No gradient"):
        initialize_from_gradient(make(), lambda _: None)
    model = make()
    with pytest.raises(ConfigError, match="not the active"):
        initialize_from_gradient(model, lambda _: None, adapter_name="other")
    start = model.adapted_layers()["0"].columns["default"].detach().clone()
    with pytest.raises(DivergedError, match="not finite"):
        initialize_from_gradient(model, lambda _: (model(x) * torch.inf).sum().backward())
    assert torch.equal(chain_matrix(start), chain_matrix(model.adapted_layers()["0"].columns["default"]))


def test_no_gradient_is_left_after_an_error():
    model = HRAModel(nn.Sequential(nn.Linear(12, 9)), HRAConfig(r=RANK, target_modules=["0"]))

    def backward(index):
        model(torch.randn(3, 12)).square().sum().backward()
        if index == 1:
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        initialize_from_gradient(model, backward, batches=3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_settings_name_the_function_of_a_start_from_a_gradient():
    with pytest.raises(ConfigError, match="leave init_weights True, and call initialize_from_gradient"):
        HRAConfig(init_weights="gradient")
