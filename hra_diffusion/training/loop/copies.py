"""Copies between main memory and the device that do not wait for its computations."""

from collections.abc import Mapping

import torch
from torch import Tensor

COMPUTES_AHEAD = ("cuda", "xpu")
"""Types of devices that compute while Python goes on, and copy from and to page-locked memory meanwhile."""


def to_device(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copy a batch from main memory to a device."""
    if device.type not in COMPUTES_AHEAD:
        return {name: tensor.to(device) for name, tensor in inputs.items()}
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in inputs.items()}


class CopiedNumbers:
    """Numbers on their way from the device to main memory."""

    def __init__(self, parts: Mapping[str, Tensor]) -> None:
        """Start the copy of tensors of numbers, by name and of any shapes."""
        self._counts = {name: part.numel() for name, part in parts.items()}
        numbers = torch.cat([part.detach().float().flatten() for part in parts.values()])
        self._numbers = numbers.to("cpu", non_blocking=numbers.device.type in COMPUTES_AHEAD)
        self._copied = torch.Event(numbers.device) if numbers.device.type in COMPUTES_AHEAD else None
        if self._copied:
            self._copied.record()

    def read(self) -> dict[str, list[float]]:
        """Wait for the copy, not for later computations, and return the numbers by name."""
        if self._copied:
            self._copied.synchronize()
        numbers = iter(self._numbers.tolist())
        return {name: [next(numbers) for _ in range(count)] for name, count in self._counts.items()}
