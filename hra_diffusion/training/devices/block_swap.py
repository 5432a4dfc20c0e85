"""Block swap: the frozen weights of a model's last blocks are in main memory, and on the device while called.

Calling a swapped block loads its weights to the device, and removes those of the swapped block called before. Gradient
checkpointing calls each block again in the backward pass, and so loads it again; without it, autograd would keep the
weights of all blocks on the device. Frozen weights do not change, so nothing is copied back. Trained weights stay on
the device. kohya's and SimpleTuner's scripts have the same flag.
"""

import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.devices.live_bytes import LiveBytes

logger = logging.getLogger(__name__)


def swap_blocks(model: nn.Module, count: int, device: torch.device) -> None:
    """Keep the frozen weights of a model's last blocks in main memory, except for the block called last.

    Args:
        model: a denoiser of diffusers, which names its blocks; frozen, but for adapters in it.
        count: number of blocks.
        device: the device on which the model is called.

    Raises:
        ConfigError: the model has fewer blocks.
    """
    blocks = _blocks_of(model)
    if device.type == "cpu":
        logger.warning("--blocks_to_swap saves no memory on the CPU, which computes from main memory: leave it out.")
    if count > len(blocks):
        raise ConfigError(
            f"--blocks_to_swap is {count}, and the denoiser has {len(blocks)} blocks: give {len(blocks)} or fewer."
        )
    _swap(blocks[len(blocks) - count :], device)


def swap_larger_models(models: Iterable[nn.Module], denoiser: nn.Module, device: torch.device) -> None:
    """Keep the frozen weights of all blocks in main memory of the models with more bytes than a denoiser.

    Else a text encoder such as FLUX.2 dev's would need more memory for a prompt than a training step.

    Args:
        models: frozen models, which name their blocks as diffusers or transformers does.
        denoiser: the denoiser, quantized or not.
        device: the device on which the models are called.
    """
    size = LiveBytes().include(denoiser.parameters())
    for model in models:
        if LiveBytes().include(model.parameters()) > size:
            _swap(_blocks_of(model), device)


def _swap(blocks: Iterable[nn.Module], device: torch.device) -> None:
    resident: list[SwappedBlock] = []
    for block in blocks:
        SwappedBlock(block, device, resident)


def _blocks_of(model: nn.Module) -> list[nn.Module]:
    kinds: Any = getattr(model, "_repeated_blocks", None) or getattr(model, "_no_split_modules", None) or ()
    return [module for module in model.modules() if type(module).__name__ in kinds]


def swapped_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of a model's swapped blocks in main memory."""
    swapped = [module.__dict__["_swapped"] for module in model.modules() if "_swapped" in module.__dict__]
    return [weight for block in swapped for _, _, weight in block.weights]


class SwappedBlock:
    """A block whose frozen weights are in main memory, unless it was called last.

    Moving its model to a device moves everything else. A deep copy of the model has its own swapped blocks.

    Args:
        block: the block.
        device: the device on which it is called.
        resident: the swapped block whose weights are on the device, if any; shared by all blocks.
    """

    def __init__(self, block: nn.Module, device: torch.device, resident: "list[SwappedBlock]") -> None:
        self.weights = [
            (module, name, _pinned(weight, device))
            for module in block.modules()
            for name, weight in module._parameters.items()
            if weight is not None and not weight.requires_grad
        ]
        self._device = device
        self._resident = resident
        self._apply = block._apply
        block.__dict__["_swapped"] = self
        block.__dict__["_apply"] = self._apply_to_others
        block.register_forward_pre_hook(self._load_weights)
        self._unload_weights()

    def _load_weights(self, *_: Any) -> None:
        """Have the frozen weights on the device, and no other block's."""
        if self._resident == [self]:
            return
        for other in self._resident:
            other._unload_weights()
        self._resident[:] = [self]
        for module, name, weight in self.weights:
            copy = weight.detach().to(self._device, copy=True, non_blocking=True)
            module._parameters[name] = nn.Parameter(copy, requires_grad=False)

    def _unload_weights(self) -> None:
        """Use the weights in main memory."""
        for module, name, weight in self.weights:
            module._parameters[name] = weight

    def _apply_to_others(self, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Move or cast everything but the frozen weights; see `torch.nn.Module._apply`."""
        self._resident[:] = [block for block in self._resident if block is not self]
        for module, name, _ in self.weights:
            module._parameters[name] = None
        try:
            return self._apply(function, recurse)
        finally:
            self._unload_weights()


def _pinned(weight: nn.Parameter, device: torch.device) -> nn.Parameter:
    """Copy a weight to page-locked memory, for fast copies to a GPU; return a quantized weight as it is."""
    if device.type != "cuda" or type(weight.data) is not Tensor:
        return weight
    return nn.Parameter(weight.data.pin_memory(), requires_grad=False)
