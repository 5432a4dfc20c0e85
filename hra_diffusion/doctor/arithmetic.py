"""Products in each precision, and attention by each backend, compared with float64 on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from hra_diffusion.doctor.probes import Probes
from hra_diffusion.doctor.report import Section, one_line

TOLERANCES = {"fp32": 1e-2, "fp16": 1e-2, "bf16": 5e-2, "fp8": 2e-1, "int8": 0.0}
"""Largest errors relative to the largest number of a result; TF32 is allowed as fp32, sums may be in half precision."""

_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_BACKENDS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH", "OVERRIDEABLE")
_WRONG_ADVICE = "Update torch and the driver. If it stays, the device may be damaged or overclocked."


def seeded_rows(*shape: int, seed: int = 0) -> Tensor:
    """Return normally distributed numbers on the CPU, the same on every machine."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(result: Tensor, expected: Tensor) -> float:
    """Return the largest difference from the expected values, divided by the largest of them; NaN counts as inf."""
    error = (result.detach().cpu().double() - expected).abs().max() / expected.abs().max()
    return float(error.nan_to_num(torch.inf))


def check_precisions(probes: Probes, section: Section) -> None:
    """Compute a product in each precision on the device."""
    device = torch.device(probes.device())
    section.facts["device"] = str(device)
    for name, product in _PRODUCTS.items():
        try:
            error = product(device)
        except Exception as failure:
            section.facts[name] = "not available on this device"
            if name in ("fp32", "fp16", "bf16"):
                section.facts[name] = "fails"
                section.warn_of_error(f"Products in {name} fail on {device}", failure, _precision_advice(name))
            continue
        section.facts[name] = f"works (relative error {error:.0e})" if error else "works"
        if error > TOLERANCES[name]:
            section.facts[name] = f"wrong (relative error {error:.0e})"
            section.warn(f"Products in {name} are wrong on {device}: relative error {error:.0e}.", _WRONG_ADVICE)


def _precision_advice(name: str) -> str:
    if name == "fp32":
        return "Install a build of torch for this device, and update its driver."
    return f"Train and generate in another precision: --mixed_precision {'bf16' if name == 'fp16' else 'fp16'} or no."


def _float_product(dtype: torch.dtype) -> Callable[[torch.device], float]:
    def product(device: torch.device) -> float:
        a, b = (seeded_rows(64, 64, seed=seed).to(dtype) for seed in (0, 1))
        return relative_error(a.to(device) @ b.to(device), a.double() @ b.double())

    return product


def _fp8_product(device: torch.device) -> float:
    a, b = (seeded_rows(64, 64, seed=seed).to(torch.float8_e4m3fn) for seed in (0, 1))
    one = torch.ones((), device=device)
    rows, columns = a.to(device), b.to(device).t().contiguous().t()
    result = torch._scaled_mm(rows, columns, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    return relative_error(result, a.double() @ b.double())


def _int8_product(device: torch.device) -> float:
    a, b = (seeded_rows(64, 64, seed=seed).mul(30).clamp(-127, 127).to(torch.int8) for seed in (0, 1))
    return relative_error(torch._int_mm(a.to(device), b.to(device)), a.double() @ b.double())


_PRODUCTS: dict[str, Callable[[torch.device], float]] = {
    "fp32": _float_product(torch.float32),
    **{name: _float_product(dtype) for name, dtype in _HALVES.items()},
    "fp8": _fp8_product,
    "int8": _int8_product,
}


def check_attention(probes: Probes, section: Section) -> None:
    """Run scaled_dot_product_attention by its default choice and by each backend."""
    device = torch.device(probes.device())
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    q, k, v = (seeded_rows(1, 2, 64, 64, seed=seed).to(dtype) for seed in range(3))
    expected = ((q.double() @ k.double().mT) / 8).softmax(-1) @ v.double()
    section.facts["rows"] = f"{str(dtype).removeprefix('torch.')} on {device}"
    working: list[str] = []
    for name in ("default", *(name for name in _BACKENDS if hasattr(SDPBackend, name))):
        title = name.lower().removesuffix("_attention")
        backends = list(SDPBackend.__members__.values()) if name == "default" else [getattr(SDPBackend, name)]
        try:
            with sdpa_kernel([backend for backend in backends if backend is not SDPBackend.ERROR]):
                rows = scaled_dot_product_attention(q.to(device), k.to(device), v.to(device))
                error = relative_error(rows, expected)
        except Exception as failure:
            section.facts[title] = "not available"
            if name == "default":
                section.facts[title] = one_line(failure)
                section.warn_of_error(f"Attention fails on {device}", failure, "Update torch and the driver.")
            continue
        working.append(title)
        section.facts[title] = "works"
        if error > TOLERANCES["fp16"]:
            section.facts[title] = f"wrong (relative error {error:.0e})"
            section.warn(f"Attention by the backend {title} is wrong on {device}: {error:.0e}.", _WRONG_ADVICE)
    if device.type == "cuda" and not {"flash", "efficient", "cudnn"} & set(working):
        problem = "No fused attention works on this GPU: attention is slow and needs much memory."
        section.warn(problem, "Update torch; GPUs before NVIDIA's Volta have none.")
