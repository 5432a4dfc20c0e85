"""Muon in float32: momentum made orthogonal by a Newton–Schulz iteration (Jordan 2024), scaled to AdamW's step size.

`torch.optim.Muon` iterates in bfloat16, emulated at a tenth of the speed on processors without bfloat16 arithmetic.
"""

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon for matrices. The root mean square of a step is 0.2 · lr per entry, typical of AdamW."""

    def __init__(self, params: list[torch.nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update all parameters with Nesterov momentum."""
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                direction = orthogonalize(p.grad.lerp(buffer, group["momentum"]))
                p.add_(direction, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)


def orthogonalize(matrix: Tensor, steps: int = 5) -> Tensor:
    """Return a matrix (n, m) with the singular vectors of `matrix` and singular values near 1."""
    a, b, c = _COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T
