"""The fused kernels against the readable formula: on a GPU if there is one, and in Triton's interpreter on the CPU."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hra_diffusion.householder import CompactWY, fused, reflect
from hra_diffusion.householder.compact_wy import invert_triangle, unit_factors
from hra_diffusion.householder.recompute import Normalized, Product
from tests.triton_interpreter import interpret

triton = pytest.importorskip("triton", reason="triton is not installed")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.jit import mangle_type  # noqa: E402

from hra_diffusion.householder import triton_launches  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")
KERNELS = {name: value for name, value in vars(triton_launches).items() if name.endswith("_kernel")}
EPSILON = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
GPU = next((device for device in fused.DEVICES if torch.get_device_module(device).is_available()), None)


@pytest.fixture(params=["cpu", "gpu"])
def device(request, monkeypatch):
    monkeypatch.setattr(fused, "_failed", set())
    if request.param == "cpu":
        interpret(monkeypatch)
        return "cpu"
    return GPU or pytest.skip("no GPU")


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def chain(d: int, r: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    U, M = unit_factors(seeded(d, r, seed=1), dtype)
    return U.to(device), M.to(device), invert_triangle(M).to(device)


@torch.enable_grad()
def expected(x, grad, U, M) -> tuple[torch.Tensor, ...]:
    """The output of the readable formula, and its gradients with respect to X, U and M, in float64."""
    x, U, M = (tensor.double().cpu().requires_grad_() for tensor in (x, U, M))
    y = CompactWY(U, invert_triangle(M)).apply(x)
    return y.detach(), *torch.autograd.grad(y, (x, U, M), grad.double().cpu())


def assert_close(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> None:
    error = (found.double().cpu() - wanted).abs().max() / wanted.abs().max()
    assert error < EPSILON[dtype]


@torch.no_grad()
def check(x, grad, U, M, T, rows=None) -> None:
    """Compare the output and all gradients with the readable formula."""
    y, s = fused.reflect_rows(x, U, T)
    assert (y.shape, y.dtype, s.shape, s.dtype) == (x.shape, x.dtype, (x[..., 0].numel(), U.shape[1]), x.dtype)
    is_output = rows == "output"
    rows = y if is_output else x if rows is None else rows
    gradients = fused.reflect_rows_backward(grad, U, T, s, rows, rows_are_output=is_output)
    assert [gradient.dtype for gradient in gradients] == [x.dtype] * 3
    grad_x, grad_U, grad_M = gradients
    for found, wanted in zip((y, grad_x, grad_U, grad_M.triu()), expected(x, grad, U, M), strict=True):
        assert found.shape == wanted.shape
        assert_close(found, wanted, x.dtype)


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize(("n", "d", "r"), [(1, 40, 8), (19, 40, 1), (70, 72, 2), (33, 72, 33)])
def test_the_kernels_are_the_readable_formula_and_its_gradient(device, dtype, n, d, r):
    U, M, T = chain(d, r, dtype, device)
    check(seeded(n, d).to(device, dtype), seeded(n, d, seed=2).to(device, dtype), U, M, T)


def test_the_fixed_number_of_programs_reads_every_tile(device, monkeypatch):
    monkeypatch.setattr(triton_launches, "LARGEST_SUMS", 0)
    U, M, T = chain(24, 3, torch.float32, device)
    check(seeded(261, 24).to(device), seeded(261, 24, seed=2).to(device), U, M, T)


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("rows", ["product", "broadcast product", "output"])
def test_the_input_is_recomputed_from_a_product_or_the_output(device, dtype, rows):
    U, M, T = chain(40, 8, dtype, device)
    a, b = (seeded(2, 9, 40, seed=seed).to(device, dtype) for seed in (3, 4))
    b = b[:, :1] if rows == "broadcast product" else b
    check(a * b, seeded(2, 9, 40, seed=2).to(device, dtype), U, M, T, "output" if rows == "output" else Product(a, b))


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("affine", ["weight and bias", "weight", "none"])
def test_the_input_is_recomputed_from_a_layer_normalization(device, dtype, affine):
    U, M, T = chain(40, 8, dtype, device)
    a = (50 + seeded(2, 9, 40)).to(device, dtype)
    weight = None if affine == "none" else (1 + seeded(40, seed=5) / 4).to(device, dtype)
    bias = seeded(40, seed=6).to(device, dtype) if "bias" in affine else None
    x, mean, rstd = torch.native_layer_norm(a, (40,), weight, bias, 1e-5)
    check(x, seeded(2, 9, 40, seed=2).to(device, dtype), U, M, T, Normalized(a, mean, rstd, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_tensors_of_the_operation_before_may_be_float32(device, dtype):
    U, M, T = chain(40, 8, dtype, device)
    a, b, grad = (seeded(9, 40, seed=seed).to(device) for seed in (3, 4, 2))
    check((a * b).to(dtype), grad.to(dtype), U, M, T, Product(a, b))
    x, mean, rstd = torch.native_layer_norm(a, (40,), None, None, 1e-5)
    check(x.to(dtype), grad.to(dtype), U, M, T, Normalized(a, mean, rstd, None, None))


@pytest.mark.parametrize("shape", [(24,), (2, 3, 2, 24), (2, 5, 24)])
@pytest.mark.parametrize("memory", ["contiguous", "channels first", "every second row", "every second number"])
def test_rows_and_gradients_may_have_any_strides(device, shape, memory):
    def rows(seed):
        x = seeded(*shape, seed=seed).to(device)
        if memory == "channels first" and len(shape) > 1:
            return x.movedim(-1, 1).contiguous().movedim(1, -1)
        if memory.startswith("every"):
            dimension = -2 if memory.endswith("row") and len(shape) > 1 else -1
            return x.repeat_interleave(2, dim=dimension).unflatten(dimension, (-1, 2)).select(dimension, 0)
        return x

    U, M, T = chain(24, 3, torch.float32, device)
    x, grad = rows(0), rows(2)
    check(x, grad, U, M, T)
    check(x, grad.contiguous(), U.contiguous(), M, T.mT.contiguous().mT)
    check(x, torch.ones((), device=device).expand(shape), U, M, T)


def test_channels_first_images_keep_their_memory_format(device):
    x = seeded(2, 24, 5).to(device).mT
    U, _, T = chain(24, 3, torch.float32, device)
    y, s = fused.reflect_rows(x, U, T)
    grad_x, grad_U, _ = fused.reflect_rows_backward(x, U, T, s, x)
    assert y.stride() == grad_x.stride() == x.stride()
    assert grad_U.stride() == (1, 24)


def test_a_frozen_input_gets_no_gradient(device):
    U, _, T = chain(24, 3, torch.float32, device)
    x = seeded(5, 24).to(device)
    _, s = fused.reflect_rows(x, U, T)
    with_x, without = (fused.reflect_rows_backward(x, U, T, s, x, need_grad_x=need) for need in (True, False))
    assert without[0] is None
    assert torch.equal(with_x[1], without[1])
    assert torch.equal(with_x[2], without[2])


def test_two_runs_are_equal_bit_for_bit(device):
    U, _, T = chain(24, 3, torch.float16, device)
    n = 40 if device == "cpu" else 9000
    x, grad = (seeded(n, 24, seed=seed).to(device, torch.float16) for seed in (0, 2))

    def run():
        y, s = fused.reflect_rows(x, U, T)
        return y, s, *fused.reflect_rows_backward(grad, U, T, s, x)

    assert all(torch.equal(first, second) for first, second in zip(run(), run(), strict=True))


def test_the_transposed_triangle_inverts_the_reflection_to_float32_accuracy(device):
    U, _, T = chain(48, 32, torch.float32, device)
    x = seeded(17, 48).to(device)
    y, _ = fused.reflect_rows(x, U, T)
    back, _ = fused.reflect_rows(y, U, T.mT)
    assert (back - x).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "shape", "r"),
    [
        (torch.float16, (77, 320), 8),
        (torch.bfloat16, (2, 19, 1280), 128),
        (torch.float32, (3, 1280), 64),
        (torch.float16, (1, 130, 640), 16),
    ],
)
def test_true_sizes_are_the_readable_formula_and_its_gradient(device, dtype, shape, r):
    U, M, T = chain(shape[-1], r, dtype, device)
    x, grad = (seeded(*shape, seed=seed).to(device, dtype).mT.contiguous().mT for seed in (0, 2))
    check(x, grad, U, M, T, "output")


def reflect_and_differentiate(x, grad, U, T):
    y, s = fused.reflect_rows(x, U, T)
    return y, s, *fused.reflect_rows_backward(grad, U, T, s, y, rows_are_output=True)


def test_fake_tensors_have_the_shapes_strides_and_dtypes_of_the_results():
    def run():
        x = torch.ones(2, 24, 5, dtype=torch.float16).mT
        return reflect_and_differentiate(x, x, torch.zeros(3, 24, dtype=torch.float16).mT, torch.eye(3))

    with pytest.MonkeyPatch.context() as monkeypatch:
        interpret(monkeypatch)
        real = run()
    with FakeTensorMode():
        fake = run()
    for one, other in zip(real, fake, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_graph_has_one_launch_forward_and_two_backward(dynamic):
    from torch._dynamo.backends.common import aot_autograd

    launches = []

    def count(graph, _):
        launches.extend(node for node in graph.graph.nodes if "triton_kernel" in node.name and "proxy" in node.name)
        raise Traced

    class Traced(Exception):  # noqa: N818
        pass

    compiled = torch.compile(
        reflect_and_differentiate, fullgraph=True, dynamic=dynamic, backend=aot_autograd(fw_compiler=count)
    )
    with pytest.raises(Exception, match="Traced"):
        compiled(seeded(20, 24), seeded(20, 24), *chain(24, 3, torch.float32, "cpu")[::2])
    assert len(launches) == 3


def test_the_operators_declare_what_they_do(monkeypatch):
    interpret(monkeypatch)
    U, _, T = chain(24, 3, torch.float32, "cpu")
    x = seeded(1, 5, 24)
    _, s = triton_launches.reflect_rows(x, U, T)
    backward = (x, U, T, s, x, None, None, None, None, None, False, True)
    torch.library.opcheck(torch.ops.hra_diffusion.reflect_rows, (x, U, T), test_utils="test_schema")
    torch.library.opcheck(torch.ops.hra_diffusion.reflect_rows_backward, backward, test_utils="test_schema")


@pytest.mark.parametrize(
    ("x", "r", "reason"),
    [
        (torch.zeros(2, 24), 8, "the device cpu"),
        (torch.zeros(2, 24, dtype=torch.float64), 8, "torch.float64"),
        (torch.zeros(2, 24), 129, "129 columns"),
        (torch.zeros(2, 24), 33, "33 columns"),
        (torch.zeros(0, 24), 8, "no rows"),
        (torch.zeros(2, 24), 8, "triton is not installed"),
        (torch.zeros(2, 24), 8, "compilation failed"),
    ],
)
def test_the_reason_for_the_readable_path_is_logged_once(monkeypatch, caplog, x, r, reason):
    fused._log_once.cache_clear()
    monkeypatch.setattr(fused, "_failed", {(torch.float32, 8)})
    if "device cpu" not in reason:
        monkeypatch.setattr(fused, "DEVICES", ("cpu",))
    monkeypatch.setattr(fused, "_HAS_TRITON", "triton" not in reason)
    with caplog.at_level(logging.DEBUG, fused.__name__):
        assert not fused.usable(x, r)
        assert not fused.usable(x, r)
    assert [reason in message for message in caplog.messages] == [True]


def test_a_kernel_that_cannot_be_compiled_is_reported_once_with_the_doctor(monkeypatch, caplog):
    class Broken:
        def __getitem__(self, grid):
            raise RuntimeError("Failed to find a C compiler.\nSet CC.")

    monkeypatch.setattr(fused, "_failed", set())
    monkeypatch.setattr(fused, "DEVICES", ("cpu",))
    monkeypatch.setattr(triton_launches, "reflect_kernel", Broken())
    U, _, T = chain(24, 3, torch.float16, "cpu")
    x = torch.zeros(5, 24, dtype=torch.float16)
    assert fused.usable(x, 3)
    assert fused.reflect_rows(x, U, T) is None
    assert fused.reflect_rows(x, U, T) is None
    assert not fused.usable(x, 3)
    assert fused.usable(x, 4)
    (message,) = caplog.messages
    assert "float16 rows and rank 3" in message
    assert "Failed to find a C compiler." in message
    assert "hra-diffusion doctor --rank 3" in message


@pytest.mark.parametrize("kernel", ["reflect_kernel", "backward_kernel"])
@pytest.mark.parametrize("channels_first", [False, True])
def test_a_step_with_a_kernel_that_cannot_be_compiled_takes_the_readable_path(
    monkeypatch, caplog, kernel, channels_first
):
    class Broken:
        def __getitem__(self, grid):
            raise RuntimeError("Failed to find a C compiler.")

    def step():
        x = (seeded(2, 24, 5).mT if channels_first else seeded(2, 5, 24)).requires_grad_()
        u = seeded(24, 3, seed=1).requires_grad_()
        y = reflect(x, u)
        y.square().sum().add(y[0].sum()).backward()
        return y.detach(), x.grad, u.grad

    expected = step()
    interpret(monkeypatch)
    monkeypatch.setattr(fused, "_failed", set())
    monkeypatch.setattr(fused, "DEVICES", ("cpu",))
    monkeypatch.setattr(triton_launches, kernel, Broken())
    for _ in range(2):
        for found, wanted in zip(step(), expected, strict=True):
            assert_close(found, wanted, torch.float32)
    assert ["hra-diffusion doctor --rank 3" in message for message in caplog.messages] == [True]


def test_errors_of_memory_are_not_taken_for_errors_of_the_compiler(monkeypatch):
    class Full:
        def __getitem__(self, grid):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(fused, "_failed", set())
    monkeypatch.setattr(triton_launches, "reflect_kernel", Full())
    with pytest.raises(torch.OutOfMemoryError):
        fused.reflect_rows(seeded(5, 24), *chain(24, 3, torch.float32, "cpu")[::2])
    assert not fused._failed


@pytest.mark.slow
def test_the_package_works_without_triton():
    program = """
import sys, torch
sys.modules["triton"] = None
import hra_diffusion
from hra_diffusion.householder import fused, reflect
assert fused.obstacle(torch.device("cuda"), torch.float16, 8) == "triton is not installed"
assert reflect(torch.zeros(2, 8), torch.ones(8, 2)).shape == (2, 8)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False).returncode == 0


class Compiler:
    """Compiles a kernel for another machine, as a launch with these arguments would."""

    def __init__(self, kernel, target):
        self.kernel, self.target = kernel, target

    def __getitem__(self, grid):
        return self.compile

    def compile(self, *arguments, num_warps, num_stages=3, **constants):
        names = [parameter.name for parameter in self.kernel.params]
        signature = dict.fromkeys(constants, "constexpr")
        for name, value in zip(names, arguments, strict=False):
            is_constant = value is None or (isinstance(value, int) and value == 1)
            signature[name] = "constexpr" if is_constant else mangle_type(value)
            if is_constant:
                constants[name] = value
        constexprs = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(self.kernel, {name: signature[name] for name in names}, constexprs)
        options = {"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True}
        assert triton.compile(source, self.target, options).metadata.shared <= 99 << 10


@pytest.mark.slow
@pytest.mark.parametrize("target", [("cuda", 80, 32), ("hip", "gfx942", 64)])
@pytest.mark.parametrize(("dtype", "r"), [(torch.bfloat16, 8), (torch.float32, 32)])
def test_the_kernels_compile_for_gpus_and_fit_into_their_shared_memory(monkeypatch, target, dtype, r):
    compile_kernels(monkeypatch, target, dtype, r)


def compile_kernels(monkeypatch, target, dtype, r):
    monkeypatch.setattr(torch.version, "hip", target[0] if target[0] == "hip" else None)
    for name, kernel in KERNELS.items():
        monkeypatch.setattr(triton_launches, name, Compiler(kernel, GPUTarget(*target)))
    U, _, T = chain(128, r, dtype, "cpu")
    x, weight, statistics = torch.zeros(1, 8192, 128, dtype=dtype), torch.ones(128, dtype=dtype), torch.zeros(8192)
    _, s = triton_launches.reflect_rows(x, U, T)
    triton_launches.reflect_rows_backward(x, U, T, s, x, None, statistics, statistics, weight, weight, False, True)
