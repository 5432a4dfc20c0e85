"""Launches of the fused kernels: one for rows, two for their gradient.

Operators of torch.library make the launches visible to torch.compile and FakeTensorMode. Otherwise kernels are launched
without them, which saves the processor ~20 µs a layer. `fused` decides where kernels are used; here rows are
(batch, n, d), and triton must be installed.
"""

from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack  # pyright: ignore[reportPrivateUsage]
from torch.library import triton_op, wrap_triton

from hra_diffusion.householder.triton_kernels import add_sums_kernel, backward_kernel, reflect_kernel

LARGEST_SUMS = 64 << 20
"""Bytes of the backward programs' sums: the limit on the number of programs."""


def is_traced() -> bool:
    """Return whether torch.compile or a dispatch mode (fake tensors, counting) follows the calls."""
    return torch.compiler.is_compiling() or _len_torch_dispatch_stack() > 0


def reflect_rows(x: Tensor, U: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    """Return Y = X − U s in x's memory format, and s (batch · n, r), for rows x (batch, n, d)."""
    return _reflect_op(x, U, T) if is_traced() else _reflect(reflect_kernel, x, U, T)


def reflect_rows_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Return X̄ (empty if not needed), Ūᵀ (r, d) and M̄ (r, r) for the gradient (batch, n, d) of Y.

    The arguments are those of `_backward_op`. X is a ⊙ b if b is given, normalized a if its mean and rstd are given,
    a + U s if a is the output Y, and a otherwise.
    """
    if is_traced():
        return _backward_op(grad, *arguments)
    return _backward(backward_kernel, add_sums_kernel, grad, *arguments)


def launch_options(images: int, n: int, r: int, itemsize: int) -> dict[str, Any]:
    """Return block sizes and compiler options for rows (images, n, d) and r columns.

    Tiles of 64 rows read U once for 64 rows; smaller tiles for few rows keep ~128 multiprocessors busy. The limits for
    many columns keep a backward program in its registers: up to 64 columns, nothing in half precision is spilled on
    NVIDIA's sm_80 and later.

    Up to 32 columns, float32 products are exact float32. For more columns those do not fit in registers: tensor cores
    compute them from three products in TF32, accurate to ~1e-6. AMD's matrix units have float32 products.
    """
    R = max(16, 1 << (r - 1).bit_length())
    is_half = itemsize == 2
    BLOCK_N = {16: 64, 32: 64, 64: 32}.get(R, 16) if is_half else {16: 32, 32: 32}.get(R, 16)
    while BLOCK_N > 16 and images * _ceil_div(n, BLOCK_N) < 128:
        BLOCK_N //= 2
    return {
        "r": r,
        "R": R,
        "BLOCK_N": BLOCK_N,
        "BLOCK_D": 64 if is_half and R < 128 else 32,
        "PRECISION": "ieee" if R <= 32 or torch.version.hip else "tf32x3",
        "num_warps": 4 if R == 16 else 8,
        "num_stages": 3 if R <= 32 else 2,
    }


def _reflect(kernel: Any, x: Tensor, U: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    images, n, d = x.shape
    r = U.shape[1]
    y, s = torch.empty_like(x), x.new_empty(images * n, r)
    options = launch_options(images, n, r, x.element_size())
    tiles = _ceil_div(n, options["BLOCK_N"])
    strides = (*x.stride(), *y.stride(), *U.stride(), *T.stride())
    kernel[(images * tiles,)](x, U, T, y, s, n, d, tiles, *strides, **options)
    return y, s


def _backward(
    kernel: Any,
    add_sums_kernel: Any,
    grad: Tensor,
    U: Tensor,
    T: Tensor,
    s: Tensor,
    a: Tensor,
    b: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    a_is_output: bool,
    need_grad_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    images, n, d = grad.shape
    r = U.shape[1]
    size = r * (d + r)
    options = launch_options(images, n, r, grad.element_size())
    tiles = _ceil_div(n, options["BLOCK_N"])
    most = min(max(LARGEST_SUMS // (4 * size), 16), 1024)
    programs = _ceil_div(images * tiles, _ceil_div(images * tiles, most))  # with nearly equal numbers of tiles
    sums = grad.new_empty((programs, size), dtype=torch.float32)
    grad_x = torch.empty_like(grad) if need_grad_x else None
    grad_U, grad_M = U.new_empty(r, d), U.new_empty(r, r)
    of_b, of_grad_x = ((0, 0, 0) if tensor is None else tensor.stride() for tensor in (b, grad_x))
    strides = (*grad.stride(), *a.stride(), *of_b, *of_grad_x, *U.stride(), *T.stride())
    kernel[(programs,)](
        grad, U, T, s, a, b, mean, rstd, weight, bias, grad_x, sums,
        n, d, tiles, images * tiles, *strides, **options,
        IS_OUTPUT=a_is_output, MEAN_IS_ROUNDED=mean is not None and mean.dtype != torch.float32,
    )  # fmt: skip
    add_sums_kernel[(_ceil_div(size, 128),)](
        sums, grad_U, grad_M, programs, r * d, r * r, BLOCK=128, PROGRAMS=16, num_warps=4
    )
    return grad.new_empty(0) if grad_x is None else grad_x, grad_U, grad_M


@triton_op("hra_diffusion::reflect_rows", mutates_args={})  # pyright: ignore[reportUntypedFunctionDecorator]
def _reflect_op(x: Tensor, U: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    return _reflect(wrap_triton(reflect_kernel), x, U, T)


@triton_op("hra_diffusion::reflect_rows_backward", mutates_args={})  # pyright: ignore[reportUntypedFunctionDecorator]
def _backward_op(
    grad: Tensor,
    U: Tensor,
    T: Tensor,
    s: Tensor,
    a: Tensor,
    b: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    a_is_output: bool,
    need_grad_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = (wrap_triton(backward_kernel), wrap_triton(add_sums_kernel))
    return _backward(*kernels, grad, U, T, s, a, b, mean, rstd, weight, bias, a_is_output, need_grad_x)


def _ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b
