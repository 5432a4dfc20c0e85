"""The fused kernels on the device against the readable formula: values and gradients."""

import torch
from torch import Tensor

from hra_diffusion.doctor.arithmetic import relative_error, seeded_rows
from hra_diffusion.doctor.probes import Probes
from hra_diffusion.doctor.report import REPORT_ADVICE, Section
from hra_diffusion.householder import CompactWY, fused
from hra_diffusion.householder.compact_wy import invert_triangle, unit_factors

TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
_ROWS, _WIDTH = 77, 320
_COMPILER_ADVICE = (
    "Triton needs a C compiler (CC), Python's header files and a writable cache folder (TRITON_CACHE_DIR). Update "
    "triton and torch together. Until then the readable path is used: slower, with the same results."
)


def check_kernels(probes: Probes, section: Section, rank: int) -> None:
    """Compare the fused kernels with the readable formula in each dtype, for chains of a rank."""
    device = torch.device(probes.device())
    if device.type not in fused.DEVICES:
        section.facts["path"] = f"the readable path is used, which is normal on the device {device.type}"
        return
    section.facts["rank"] = str(rank)
    for dtype in fused.DTYPES:
        name = str(dtype).removeprefix("torch.")
        reason = fused.obstacle(device, dtype, rank)
        if reason == fused.NO_TRITON:
            package = "triton-windows" if probes.system() == "Windows" else "triton"
            section.facts["path"] = "the readable path is used: triton is not installed"
            section.warn("The fused kernels need triton, which is not installed.", f"Run: pip install {package}")
            return
        if reason is not None:
            section.facts[name] = f"the readable path is used: {reason}"
            continue
        try:
            errors = compare_with_formula(device, dtype, rank)
        except Exception as failure:
            section.facts[name] = "fail"
            problem = f"The fused kernels for {name} rows and rank {rank} fail"
            section.warn_of_error(problem, failure, _COMPILER_ADVICE)
            continue
        listed = ", ".join(f"{of} {error:.0e}" for of, error in errors.items())
        section.facts[name] = f"agree with the readable formula (relative errors: {listed})"
        if max(errors.values()) > TOLERANCES[dtype]:
            section.facts[name] = f"differ from the readable formula (relative errors: {listed})"
            section.warn(f"The fused kernels for {name} rows and rank {rank} give wrong results.", REPORT_ADVICE)


def compare_with_formula(device: torch.device, dtype: torch.dtype, rank: int) -> dict[str, float]:
    """Return the relative errors of the kernels' output and gradients."""
    from hra_diffusion.householder import triton_launches  # needs triton

    x, grad = (seeded_rows(1, _ROWS, _WIDTH, seed=seed).to(dtype) for seed in (0, 1))
    U, M = unit_factors(seeded_rows(_WIDTH, rank, seed=2), dtype)
    T = invert_triangle(M)
    on_device = [tensor.to(device) for tensor in (x, U, T, grad)]
    with torch.no_grad():
        y, s = triton_launches.reflect_rows(*on_device[:3])
        gradients = triton_launches.reflect_rows_backward(
            on_device[3], *on_device[1:3], s, on_device[0], *[None] * 5, False, True
        )
    grad_x, grad_U, grad_M = gradients
    results = {"values": y, "gradient of rows": grad_x, "of columns": grad_U.mT, "of the triangle": grad_M.triu()}
    expected = _formula(x, grad, U, M)
    return {name: relative_error(results[name], expected[name]) for name in results}


def _formula(x: Tensor, grad: Tensor, U: Tensor, M: Tensor) -> dict[str, Tensor]:
    """Return the output of the readable formula and its gradients, in float64."""
    x, U, M = (tensor.double().requires_grad_() for tensor in (x, U, M))
    with torch.enable_grad():
        y = CompactWY(U, invert_triangle(M)).apply(x)
        gradients = torch.autograd.grad(y, (x, U, M), grad.double())
    return {
        "values": y.detach(),
        **dict(zip(("gradient of rows", "of columns", "of the triangle"), gradients, strict=True)),
    }
