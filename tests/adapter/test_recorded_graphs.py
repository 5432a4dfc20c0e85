"""Adapted models in recorded graphs: torch.jit.trace, torch.export and ONNX."""

import pytest
import torch
from torch import nn
from torch.export import Dim

from hra_diffusion import HRAConfig, HRAModel
from hra_diffusion.householder.compact_wy import factor
from hra_diffusion.householder.recording import inverted_by_products, orthonormalized
from hra_diffusion.householder.start import paired_columns
from tests.models import make_unet

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.trace(_method)?` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:# The axis name:UserWarning"),
]
UNET_TARGETS = ["conv1", "proj_in", "to_q", "to_out.0", "ff.net.0.proj"]


class Block(nn.Module):
    """Convolutions of two kinds and a linear layer."""

    def __init__(self):
        super().__init__()
        self.pointwise = nn.Conv2d(3, 6, 1)
        self.conv = nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.linear = nn.Linear(6, 5)

    def forward(self, x):
        return self.linear(self.conv(self.pointwise(x)).mean((2, 3)))


class Denoiser(nn.Module):
    """A UNet that returns a tensor."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, sample, timestep, text):
        return self.unet(sample, timestep, text, return_dict=False)[0]


def adapt(base, state, targets):
    settings = HRAConfig(r=3 if state == "orthonormal" else 4, target_modules=targets, init_weights=False)
    settings.apply_GS = state == "orthonormal"
    model = HRAModel(base, {"a": settings, "b": settings}, "a").eval()
    if state == "strength":
        model.set_strength(0.5, "a")
    elif state in ("mean", "product"):
        model.set_adapters(["a", "b"], [0.7, 1.0], state)
    elif state == "merged":
        model.merge_adapter()
    elif state == "disabled":
        model.disable_adapter_layers()
    return model


STATES = ["plain", "strength", "mean", "product", "orthonormal", "merged", "disabled"]


@pytest.fixture(params=STATES)
def model(request):
    torch.manual_seed(0)
    return adapt(Block(), request.param, ["pointwise", "conv", "linear"])


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8)


@pytest.fixture
def other():
    """Return inputs of another batch size."""
    return torch.randn(3, 3, 8, 8)


def unet_and_inputs(state):
    torch.manual_seed(0)
    unet = make_unet().eval()
    model = adapt(unet, "plain" if state == "unloaded" else state, UNET_TARGETS)
    denoiser = Denoiser(model.merge_and_unload() if state == "unloaded" else model).eval()
    inputs = [(torch.randn(n, 4, 8, 8), torch.arange(1, n + 1), torch.randn(n, 5, 32)) for n in (2, 3)]
    return denoiser, *inputs


def run_onnx(file, inputs):
    """Return the output of ONNX Runtime."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    named = {put.name: value.numpy() for put, value in zip(session.get_inputs(), inputs, strict=True)}
    return torch.from_numpy(session.run(None, named)[0])


def export_onnx(file, model, inputs, **options):
    pytest.importorskip("onnxscript")
    torch.onnx.export(model, inputs, file, verbose=False, **options)
    return file


@pytest.mark.parametrize("grad", [True, False])
def test_a_traced_model_passes_its_check_and_takes_other_sizes(model, x, other, grad):
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(model, x)
        assert torch.allclose(traced(other), model(other), atol=1e-6)


@pytest.mark.slow
def test_an_exported_model_takes_other_batch_sizes(model, x, other):
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: Dim("batch", min=2, max=16)},)).module()
    assert torch.allclose(exported(other), model(other), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("record", ["trace", "export"])
@pytest.mark.parametrize("apply_GS", [False, True])
def test_gradients_of_a_recorded_model_are_those_of_the_model(x, record, apply_GS):
    torch.manual_seed(0)
    settings = HRAConfig(r=2, target_modules=["pointwise", "linear"], init_weights=False)
    settings.apply_GS = apply_GS
    model = HRAModel(Block(), settings)
    model(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    recorded = torch.jit.trace(model, x) if record == "trace" else torch.export.export(model, (x,)).module()
    recorded(x).square().sum().backward()
    actual = {name: p.grad for name, p in recorded.named_parameters() if p.grad is not None}
    assert actual.keys() == expected.keys()
    assert all(torch.allclose(actual[name], expected[name], atol=1e-5) for name in expected)


@pytest.mark.slow
def test_onnx_computes_the_model(model, x, other, tmp_path):
    file = export_onnx(tmp_path / "model.onnx", model, (x,), dynamic_shapes=({0: Dim("batch", min=2, max=16)},))
    assert torch.allclose(run_onnx(file, (other,)), model(other), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["unloaded"])
def test_onnx_computes_an_adapted_unet(state, tmp_path):
    denoiser, inputs, others = unet_and_inputs(state)
    batch = Dim("batch", min=2, max=16)
    file = export_onnx(tmp_path / "model.onnx", denoiser, inputs, dynamic_shapes=({0: batch},) * 3)
    assert torch.allclose(run_onnx(file, others), denoiser(*others), atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter is deprecated, and warns of diffusers' code
@pytest.mark.parametrize("state", ["merged"])
def test_the_older_exporter_takes_merged_adapters(state, tmp_path):
    denoiser, inputs, others = unet_and_inputs(state)
    names = ["sample", "timestep", "text"]
    axes = {name: {0: "batch"} for name in names}
    file = export_onnx(tmp_path / "model.onnx", denoiser, inputs, dynamo=False, input_names=names, dynamic_axes=axes)
    assert torch.allclose(run_onnx(file, others), denoiser(*others), atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of diffusers' code
@pytest.mark.parametrize("state", ["plain"])
def test_an_adapted_unet_is_traced_and_exported(state):
    denoiser, inputs, others = unet_and_inputs(state)
    expected = denoiser(*others)
    assert torch.allclose(torch.jit.trace(denoiser, inputs)(*others), expected, atol=1e-5)
    batch = Dim("batch", min=2, max=16)
    exported = torch.export.export(denoiser, inputs, dynamic_shapes=({0: batch},) * 3).module()
    assert torch.allclose(exported(*others), expected, atol=1e-5)


@pytest.mark.parametrize("r", [1, 2, 3, 8, 13, 64])
@pytest.mark.parametrize("start", [torch.randn, paired_columns])
def test_products_invert_triangles_as_exactly_as_a_solver(start, r):
    torch.manual_seed(0)
    U, T = factor(start(96, r))
    gram = U.mT @ U
    M = gram.triu(1) + torch.diag(gram.diagonal() / 2)
    error, solver = (inverted_by_products(M) @ M - torch.eye(r)).abs().max(), (T @ M - torch.eye(r)).abs().max()
    assert error <= 1e-5 + 4 * solver


def test_repeated_orthonormalization_agrees_with_qr_up_to_signs():
    torch.manual_seed(0)
    U = torch.randn(2, 20, 7)
    U[..., 1] = U[..., 0] + 1e-3 * U[..., 1]
    Q, expected = orthonormalized(U), torch.linalg.qr(U).Q
    assert torch.allclose((Q.mT @ expected).abs(), torch.eye(7).expand(2, 7, 7), atol=1e-3)
    assert torch.allclose(Q.mT @ Q, torch.eye(7).expand(2, 7, 7), atol=1e-5)
