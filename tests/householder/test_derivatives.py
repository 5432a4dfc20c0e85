"""Second derivatives, transforms of torch.func, and fused kernels inside an adapted model."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import gradgradcheck
from torch.func import functional_call, grad, hessian, jvp, vmap

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.householder import chain_apply, fused, random_columns, reflect

D, R = 4, 3


@pytest.fixture
def u() -> torch.Tensor:
    return random_columns(D, R, generator=torch.Generator().manual_seed(0)).double().requires_grad_()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize(
    "function",
    [
        reflect,
        partial(reflect, output_is_kept=True),
        lambda x, u: reflect(nn.functional.layer_norm(x, (D,)), u),
        lambda x, u: reflect(x.sigmoid() * x.tanh(), u),
        lambda x, u: reflect(x.reshape(1, D, 2).mT, u, output_is_kept=True),
        lambda x, u: reflect(x, torch.eye(D, R, dtype=x.dtype)).sin() * u.sum(),
    ],
    ids=["input", "output", "normalized", "product", "image", "frozen"],
)
def test_second_derivatives_are_those_of_the_values(function, x, u):
    assert gradgradcheck(function, (x, u), fast_mode=True)


def loss(u: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return reflect(x, u).sin().sum()


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of forward mode in torch itself
def test_transforms_of_torch_func_agree_with_autograd(u, x):
    rows, columns = x.detach(), u.detach()
    (expected,) = torch.autograd.grad(loss(u, rows), u)
    assert torch.allclose(grad(loss)(columns, rows), expected)
    second = torch.autograd.functional.hessian(lambda u: loss(u, rows), columns)
    assert torch.allclose(hessian(loss)(columns, rows), second)
    tangent = jvp(lambda u: loss(u, rows), (columns,), (torch.ones_like(columns),))[1]
    assert torch.allclose(tangent, expected.sum())
    assert torch.allclose(vmap(lambda row: reflect(row, columns))(rows), chain_apply(rows, columns))
    each = vmap(lambda u: reflect(rows, u))(torch.stack([columns, columns.flip(0)]))
    assert torch.allclose(each[1], chain_apply(rows, columns.flip(0)))


def adapted() -> HRAModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    return HRAModel(net, HRAConfig(r=4, target_modules=["1", "3"], init_weights=False))


def test_gradients_for_each_example_of_a_model():
    model = adapted()
    trained = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    examples = torch.randn(3, 8)

    def example_loss(parameters, example):
        return functional_call(model, parameters, (example.unsqueeze(0),)).square().sum()

    found = vmap(grad(example_loss), in_dims=(None, 0))(trained, examples)
    for index, example in enumerate(examples):
        model.zero_grad()
        model(example.unsqueeze(0)).square().sum().backward()
        for name, value in model.named_parameters():
            if value.requires_grad:
                assert torch.allclose(found[name][index], value.grad, atol=1e-5)


def test_a_penalty_on_the_gradient_of_a_model_has_a_gradient():
    model, x = adapted().double(), torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    u = model.adapted_layers()["1"].hra_u["default"]

    def penalty() -> torch.Tensor:
        (gradient,) = torch.autograd.grad(model(x).sin().sum(), x, create_graph=True)
        return gradient.square().sum()

    penalty().backward()
    expected, step = u.grad.clone(), 1e-6
    with torch.no_grad():
        u[0, 0] += step
    above = penalty().item()
    with torch.no_grad():
        u[0, 0] -= 2 * step
    assert expected[0, 0].item() == pytest.approx((above - penalty().item()) / (2 * step), rel=1e-4)


def test_a_model_trains_in_fused_kernels(monkeypatch):
    pytest.importorskip("triton")
    from tests.triton_interpreter import interpret

    model, x = adapted(), torch.randn(5, 8, requires_grad=True)

    def step() -> list[torch.Tensor]:
        model.zero_grad()
        x.grad = None
        y = model(x)
        y.sin().sum().backward()
        return [y.detach(), x.grad, *(value.grad.clone() for value in model.parameters() if value.requires_grad)]

    expected = step()
    interpret(monkeypatch)
    monkeypatch.setattr(fused, "DEVICES", ("cpu",))
    called: list[torch.Tensor] = []
    launch = fused.reflect_rows_backward
    monkeypatch.setattr(fused, "reflect_rows_backward", lambda *a, **k: called.append(a[0]) or launch(*a, **k))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(step(), expected, strict=True))
    assert len(called) == 2
