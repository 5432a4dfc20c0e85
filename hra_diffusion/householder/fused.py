"""The reflection of rows by fused kernels, where they run: see `triton_launches`.

Whoever reflects rows asks `usable` first, and takes the readable path of `compact_wy` and `reflection` otherwise.
"""

import logging
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from hra_diffusion.householder.recompute import Normalized, Product

logger = logging.getLogger(__name__)

DEVICES = ("cuda", "xpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
NO_TRITON = "triton is not installed"
_HAS_TRITON = find_spec("triton") is not None
_failed: set[tuple[torch.dtype, int]] = set()

Result = TypeVar("Result")


def usable(x: Tensor, r: int) -> bool:
    """Return whether kernels reflect rows x (*, d) with r columns; log once at debug level why they do not."""
    reason = obstacle(x.device, x.dtype, r) if x.numel() else "no rows"
    if reason is not None and not torch.compiler.is_compiling():
        _log_once(reason)
    return reason is None


def reflect_rows(x: Tensor, U: Tensor, T: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return H x for each row of x (*, d) in its memory format, and the slim s (n, r) for the gradient: one launch.

    None if the kernels cannot be compiled. H = I − U T Uᵀ, with U (d, r) in x's dtype and T (r, r) in float32. With
    T.mT, it is Hᵀ x. −s.mT is the slim factor of `Factors.apply_in_parts`; its images are one after another.
    """

    def launch(launches: Any) -> tuple[Tensor, Tensor]:
        y, s = launches.reflect_rows(_as_images(x)[0], U, T)
        return y.view(x.shape), s

    return _launch(launch, x, U.shape[1])


def reflect_rows_backward(
    grad: Tensor,
    U: Tensor,
    T: Tensor,
    s: Tensor,
    rows: Tensor | Product | Normalized,
    *,
    rows_are_output: bool = False,
    need_grad_x: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor] | None:
    """Return X̄, Ū (d, r) and M̄ (r, r), M = T⁻¹, of `reflect_rows`: two launches. None if they cannot be compiled.

    Args:
        grad: the gradient of the output (*, d), with any strides.
        U: the unit columns, as forward.
        T: the triangle, as forward.
        s: the slim factor that `reflect_rows` returned.
        rows: the rows x that it reflected, or what they are computed from.
        rows_are_output: whether `rows` is the output instead, as a tensor.
        need_grad_x: whether X̄ is returned; None otherwise.
    """

    def launch(launches: Any) -> tuple[Tensor | None, Tensor, Tensor]:
        statistics: list[Tensor | None] = [None] * 4
        if isinstance(rows, Normalized):
            tensors = (rows.a,)
            statistics = [tensor if tensor is None else tensor.flatten() for tensor in rows[1:]]
        else:
            tensors = rows if isinstance(rows, Product) else (rows,)
        images, a, *b = _as_images(grad, *(tensor.broadcast_to(grad.shape) for tensor in tensors))
        grad_x, grad_U, grad_M = launches.reflect_rows_backward(
            images, U, T, s, a, b[0] if b else None, *statistics, rows_are_output, need_grad_x
        )
        return grad_x.view(grad.shape) if need_grad_x else None, grad_U.mT, grad_M

    return _launch(launch, grad, U.shape[1])


def _launch(launch: Callable[[Any], Result], x: Tensor, r: int) -> Result | None:
    if torch.compiler.is_compiling():
        from hra_diffusion.householder import triton_launches

        return launch(triton_launches)
    key = (x.dtype, r)
    if key in _failed:
        return None
    try:
        from hra_diffusion.householder import triton_launches

        if x.device.type == "cpu" or triton_launches.is_traced():
            return launch(triton_launches)
        with torch.accelerator.device_index(x.device.index):  # Kernels are launched on the current device.
            return launch(triton_launches)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # Compilers raise anything: RuntimeError, OSError, subclasses of Exception.
        _failed.add(key)
        logger.warning(
            "The fused kernels for %s rows and rank %d cannot be compiled (%s: %s). They are not used, "
            "which is slower. For details run: hra-diffusion doctor --rank %d",
            str(x.dtype).removeprefix("torch."),
            r,
            type(error).__name__,
            str(error).strip().partition("\n")[0],
            r,
        )
        return None


def obstacle(device: torch.device, dtype: torch.dtype, r: int) -> str | None:
    """Return why kernels do not reflect rows of a device and dtype with r columns; None if they do."""
    if device.type not in DEVICES:
        return f"rows on the device {device.type}"
    if not _HAS_TRITON:
        return NO_TRITON
    if dtype not in DTYPES:
        return f"rows in {dtype}"
    if r > 128 or (r > 32 and not _has_matrix_unit(device)):
        return f"{r} columns on this device"
    return "compilation failed" if (dtype, r) in _failed else None


def _has_matrix_unit(device: torch.device) -> bool:
    """Return whether tensor cores compute float32 products of up to 128 columns: NVIDIA since Ampere, AMD's CDNA."""
    if device.type != "cuda":
        return False
    properties = torch.cuda.get_device_properties(device)
    return properties.gcnArchName.startswith("gfx9") if torch.version.hip else properties.major >= 8


@cache
def _log_once(reason: str) -> None:
    logger.debug("Reflections without fused kernels: %s.", reason)


def _as_images(*tensors: Tensor) -> list[Tensor]:
    """View rows (*, d) of one shape as (batch, n, d): one image if possible; copy only what has no such view."""
    *leading, d = tensors[0].shape
    if all(_is_mergeable(tensor, 0) for tensor in tensors):
        return [tensor.view(1, -1, d) for tensor in tensors]
    if all(_is_mergeable(tensor, 1) for tensor in tensors):
        return [tensor.view(leading[0], -1, d) for tensor in tensors]
    return [tensor.reshape(1, -1, d) for tensor in tensors]


def _is_mergeable(x: Tensor, first: int) -> bool:
    """Return whether the dimensions of the rows, from the first, can be viewed as one."""
    sized = [(size, stride) for size, stride in zip(x.shape[first:-1], x.stride()[first:-1], strict=True) if size != 1]
    return all(outer[1] == inner[0] * inner[1] for outer, inner in pairwise(sized))
