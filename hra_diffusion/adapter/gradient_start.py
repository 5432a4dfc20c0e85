"""The start of a new adapter from the gradient of a loss: see `householder.start`."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.adapter.model import AdaptedModel
from hra_diffusion.errors import ConfigError, DivergedError
from hra_diffusion.householder.start import columns_along, largest_planes, skew_product

_OVERSAMPLING: Final = 8
"""Dimensions of a basis beyond those of its planes."""


def initialize_from_gradient(
    models: AdaptedModel | Sequence[AdaptedModel],
    backward: Callable[[int], object],
    *,
    adapter_name: str = "default",
    batches: int = 8,
    generator: torch.Generator | None = None,
    reduce: Callable[[Tensor], Tensor] | None = None,
) -> list[str]:
    """Let the pairs of a new adapter start in the planes in which a loss decreases most. The model stays the same.

    An adapted layer keeps two matrices (d, r + 8) meanwhile. Layers with larger convolutions than 1 × 1 keep their
    random pairs.

    >>> def backward(index):
    ...     loss_of(model, batches[index]).backward()
    >>> initialize_from_gradient(model, backward, batches=8)

    Args:
        models: a model with the adapter, or several, such as a denoiser and its text encoders. It has not been trained.
        backward: computes the loss of the batch of an index, and its gradient; called twice for each index.
        adapter_name: the adapter.
        batches: number of batches.
        generator: the source of random numbers; torch's default generator if None.
        reduce: sums a tensor over several processes.

    Returns:
        The names of the layers that were initialized, behind their model's number if there are several models.

    Raises:
        ConfigError: the adapter is unknown, inactive, at another strength than 1 or orthogonalized (apply_GS), or no
            layer's gradient was seen.
        DivergedError: a gradient is not finite.
    """
    adapted = (models,) if isinstance(models, AdaptedModel) else models
    layers: dict[str, HRALayer] = {}
    for number, model in enumerate(adapted):
        prefix = f"{number}." if len(adapted) > 1 else ""
        layers |= {f"{prefix}{name}": layer for name, layer in _layers_to_start(model, adapter_name).items()}
    bases: dict[str, Tensor] = {}
    products = {
        name: torch.randn(layer.unfolded_size, _width(layer, adapter_name), generator=generator)
        for name, layer in layers.items()
    }
    with _gradients_cleared(adapted):
        for _ in range(2):
            bases = {name: _orthonormal(product) for name, product in products.items()}
            products = _skew_products(layers, bases, backward, batches)
            products = {name: product if reduce is None else reduce(product) for name, product in products.items()}
            if broken := [name for name, product in products.items() if not product.isfinite().all()]:
                reason = f"The gradient of a batch is not finite, in {broken[0]}"
                raise DivergedError(f"{reason}: lower the scale of the loss.")
    started = [name for name, product in products.items() if product.any()]
    if not started:
        raise ConfigError(f"No gradient reached the layers of the adapter {adapter_name!r}: backward must compute one.")
    for name in started:
        columns = layers[name].columns[adapter_name]
        r = columns.shape[1]
        directions = largest_planes(bases[name].cpu(), products[name].cpu(), (r + 1) // 2)
        with torch.no_grad():
            columns.copy_(columns_along(directions, r))
    return started


@contextmanager
def _gradients_cleared(models: Sequence[AdaptedModel]) -> Generator[None]:
    """Remove the gradients of a `with` block from trained parameters, also after an error."""
    try:
        yield
    finally:
        for parameter in (parameter for model in models for parameter in model.parameters()):
            if parameter.requires_grad:
                parameter.grad = None


def _layers_to_start(model: AdaptedModel, adapter_name: str) -> dict[str, HRALayer]:
    if adapter_name not in model.peft_config or model.active_adapters != [adapter_name]:
        raise ConfigError(f"The adapter {adapter_name!r} is not the active one: activate it first (set_adapter).")
    if model.strengths[adapter_name] != 1 or model.peft_config[adapter_name].apply_GS:
        raise ConfigError(f"The adapter {adapter_name!r} has apply_GS or a strength other than 1: it has no pairs.")
    return {
        name: layer
        for name, layer in model.adapted_layers().items()
        if layer.reflects_input
        and adapter_name in layer.columns
        # so many directions have room in its inputs
        and layer.unfolded_size > max(1, layer.columns[adapter_name].shape[1] // 2)
    }


def _width(layer: HRALayer, adapter_name: str) -> int:
    """Return the number of columns of a layer's basis."""
    return min(layer.unfolded_size, layer.columns[adapter_name].shape[1] + 1 + _OVERSAMPLING)


def _orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis of columns, on their device; computed on the CPU."""
    return torch.linalg.qr(columns.cpu().double()).Q.to(columns.device, torch.float32)


def _skew_products(
    layers: dict[str, HRALayer], bases: dict[str, Tensor], backward: Callable[[int], object], batches: int
) -> dict[str, Tensor]:
    """Return K Q of each layer, summed over batches."""
    sums = {name: _Sum(basis, layers[name].channel_dim) for name, basis in bases.items()}
    with _measured({layers[name].base_layer: sums[name] for name in layers}), torch.compiler.set_stance("force_eager"):
        for index in range(batches):
            backward(index)
    return {name: total.product for name, total in sums.items()}


class _Sum:
    """A sum of K Q over rows, in float32.

    Attributes:
        product: the sum (d, k).
    """

    def __init__(self, Q: Tensor, channel_dim: int) -> None:
        self._Q = Q
        self._channel_dim = channel_dim
        self.product = torch.zeros_like(Q)

    def add(self, x: Tensor, x_bar: Tensor) -> None:
        """Add rows x (*, d), or images (*, d, height, width), with their gradients."""
        self._Q, self.product = (tensor.to(x.device) for tensor in (self._Q, self.product))
        rows, gradients = (tensor.movedim(self._channel_dim, -1).reshape(-1, len(self._Q)) for tensor in (x, x_bar))
        self.product += skew_product(rows, gradients, self._Q)


class _Measured(torch.autograd.Function):
    """The identity, whose backward pass adds to a sum. x is saved by autograd, so that checkpoints need not keep it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, total: _Sum) -> Tensor:
        ctx.save_for_backward(x)
        ctx.total = total
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        ctx.total.add(x.detach(), grad_outputs[0].detach())
        return grad_outputs[0], None


@contextmanager
def _measured(modules: dict[nn.Module, _Sum]) -> Generator[None]:
    """Measure the inputs of modules and their gradients within a `with` block."""

    def measure(total: _Sum) -> Callable[[nn.Module, Any], Any]:
        return lambda _, inputs: (_Measured.apply(inputs[0], total), *inputs[1:])

    hooks = [module.register_forward_pre_hook(measure(total)) for module, total in modules.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
