"""Chains are factored once for many layers and passes."""

import copy
from collections import Counter, OrderedDict

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from hra_diffusion import HRAConfig, HRAModel


class Operations(TorchDispatchMode):
    """Counts operations by name within a `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    @property
    def factorings(self) -> int:
        return self.counts["linalg_solve_triangular"]


class Checkpointed(nn.Module):
    """Four layers of two shapes, with gradient checkpointing or without."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(OrderedDict(up=nn.Linear(8, 12), act=nn.GELU(), down=nn.Linear(12, 8))) for _ in range(2)
        )
        self.use_reentrant: bool | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x) if self.use_reentrant is None else checkpoint(layer, x, use_reentrant=self.use_reentrant)
        return x


@pytest.fixture
def model() -> HRAModel:
    torch.manual_seed(0)
    return HRAModel(Checkpointed(), HRAConfig(r=4, target_modules=["up", "down"], init_weights=False))


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()


def gradients(model: HRAModel, x: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    model(x).sin().sum().backward()
    return [u.grad.clone() for u in model.parameters() if u.requires_grad]


@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_a_step_factors_each_shape_once(model, x, use_reentrant):
    expected = gradients(model, x)
    model.model.use_reentrant = use_reentrant
    with Operations() as operations:
        found = gradients(model, x)
    assert operations.factorings == 2
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_inference_factors_once_and_again_after_a_change(model, x, strength):
    model.set_strength(strength)
    model.set_adapter("default", inference_mode=True)
    with torch.no_grad():
        expected = model(x)
        with Operations() as operations:
            assert torch.equal(model(x), expected)
            with model.disable_adapter():
                model(x)
            assert torch.equal(model(x), expected)
            assert operations.factorings == 0
            assert not torch.equal(model.layers[0](x), x)
            assert operations.factorings == 0
        for layer in model.adapted_layers().values():
            layer.hra_u["default"].normal_()
        assert not torch.allclose(model(x), expected, atol=1e-3)


def test_mixed_batches_factor_once(model, x):
    model.add_adapter("b", HRAConfig(r=4, target_modules=["up", "down"], init_weights=False))
    model.set_adapter("default", inference_mode=True)
    names = ["default", "b", "__base__"]
    with torch.no_grad():
        expected = model(x, adapter_names=names)
        with Operations() as operations:
            assert torch.equal(model(x, adapter_names=names), expected)
        assert operations.factorings == 0


def test_trained_columns_are_factored_in_each_pass(model, x):
    with torch.no_grad():
        before = model(x)
        for layer in model.adapted_layers().values():
            layer.hra_u["default"].data.normal_()  # no version counter tells
        assert not torch.allclose(model(x), before, atol=1e-3)


def test_two_passes_before_one_backward_pass_add_their_gradients(model, x):
    single = gradients(model, x)
    model.zero_grad()
    (model(x).sin().sum() + model(x).sin().sum()).backward()
    found = [u.grad for u in model.parameters() if u.requires_grad]
    assert all(torch.allclose(a, 2 * b, atol=1e-5) for a, b in zip(found, single, strict=True))


def test_a_layer_that_was_not_called_has_no_gradient(model, x):
    model.model.layers[1].forward = lambda x: x
    model(x).sum().backward()
    called = {name: u.grad is not None for name, u in model.named_parameters() if u.requires_grad}
    assert all(has_gradient == ("layers.0." in name) for name, has_gradient in called.items())


def test_copies_of_a_model_factor_their_own_columns(model, x):
    expected = model(x)
    copied = copy.deepcopy(model)
    for layer in copied.adapted_layers().values():
        layer.hra_u["default"].data.normal_()
    assert not torch.allclose(copied(x), expected, atol=1e-3)
    assert torch.equal(model(x), expected)


def test_a_compiled_model_has_one_graph_for_all_strengths_and_factors_each_shape_once(model, x):
    torch._dynamo.reset()
    graphs: list[int] = []

    def backend(graph, _):
        graphs.append(sum("solve_triangular" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        for strength in (1, 0.5, 0.3, 1, 0.7):
            model.set_strength(strength)
            assert torch.allclose(compiled(x), model(x), atol=1e-6)
    assert graphs == [2, 2]  # plain and blended columns
