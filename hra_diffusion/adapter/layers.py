"""Adapted linear layers and convolutions."""

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from hra_diffusion.adapter.layer import HRALayer, compute_dtype
from hra_diffusion.adapter.targets import is_linear
from hra_diffusion.errors import TargetError
from hra_diffusion.householder.compact_wy import factor, full_precision
from hra_diffusion.householder.recording import is_transformed


class HRALinear(HRALayer):
    """A linear layer behind a chain of reflections; any layer that takes (*, d)."""

    @property
    def reflects_input(self) -> bool:
        """True."""
        return True

    @property
    def unfolded_size(self) -> int:
        """`in_features`; the rows of the weight (in, out) of transformers' Conv1D."""
        size = getattr(self.base_layer, "in_features", None)
        return self.base_layer.weight.shape[0] if size is None else size

    def unfold_weight(self, weight: Tensor) -> Tensor:
        """View the weight as (out, in)."""
        return weight if hasattr(self.base_layer, "in_features") else weight.mT

    def fold_weight(self, unfolded: Tensor) -> Tensor:
        """Return (out, in) in the base layer's shape."""
        return self.unfold_weight(unfolded).contiguous()

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return base_layer(H x) for x (*, d), in the base layer's compute precision."""
        y = self.base_layer(self.reflect_input(x), *args, **kwargs)
        return self.magnitudes.scale(y, x) if self.magnitudes.adapters else y


class HRAConv2d(HRALayer):
    """A convolution behind a chain of reflections of its unfolded patches: any kernel, stride, padding and dilation.

        conv(x, W H) = conv(x, W) − conv₁ₓ₁(conv(x, Uᵀ), W U T)

    A 1 × 1 convolution is treated as a linear layer over the channels.
    """

    channel_dim = -3
    _kept: "_KeptConvolutions | None" = None

    @property
    def convolution(self) -> Any:
        """The convolution itself, inside LoRAs if there are any."""
        return without_lora(self.base_layer)

    @property
    def reflects_input(self) -> bool:
        """Whether the kernel is 1 × 1: a linear layer over the channels."""
        return self.convolution.kernel_size == (1, 1)

    @property
    def in_features(self) -> int:
        """Input channels, by PEFT's name."""
        return self.convolution.in_channels

    @property
    def out_features(self) -> int:
        """Output channels, by PEFT's name."""
        return self.convolution.out_channels

    @property
    def unfolded_size(self) -> int:
        """Input channels × kernel height × kernel width."""
        return self.convolution.in_channels * self.convolution.kernel_size[0] * self.convolution.kernel_size[1]

    def unfold_weight(self, weight: Tensor) -> Tensor:
        """View (out, in, kh, kw) as (out, in · kh · kw)."""
        return weight.flatten(1)

    def fold_weight(self, unfolded: Tensor) -> Tensor:
        """View (out or r, in · kh · kw) as (out or r, in, kh, kw)."""
        return unfolded.unflatten(1, (self.convolution.in_channels, *self.convolution.kernel_size))

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Convolve x (batch, in, height, width), or without the batch, with the adapted weight."""
        if self.rows is None and not self.is_active:
            return self.base_layer(x, *args, **kwargs)
        y = self._adapted(x, *args, **kwargs)
        return self.magnitudes.scale(y, x) if self.magnitudes.adapters else y

    def _adapted(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if self.reflects_input:
            rows = self.reflect_input(x.flatten(-2).mT, output_is_kept=True)  # Convolutions keep their input.
            return self.base_layer(rows.mT.unflatten(-1, x.shape[-2:]), *args, **kwargs)
        x = x.to(compute_dtype(x))
        output = self.base_layer(x, *args, **kwargs)
        if self.rows is None:
            change = self._change(x, self.active_columns())
            return output if change is None else output + change
        return self.rows.add_change(output, x, lambda x, mixture: self._change(x, self.columns_of_rows(mixture)))

    def _change(self, x: Tensor, columns: Tensor | None) -> Tensor | None:
        """Return the adapter's change of the output, −conv₁ₓ₁(conv(x, Uᵀ), W U T); None without an adapter."""
        if columns is None:
            return None
        filters, B = self._small_convolutions(columns.to(x.device), x.dtype)
        return conv2d(self.convolution._conv_forward(x, filters, None), B)

    def _small_convolutions(self, columns: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the filters Uᵀ (r, in, kh, kw) and −W U T (out, r, 1, 1), kept until frozen columns or W change."""
        version = self._constant_version(columns, dtype)
        if self._kept and version is not None and self._kept.columns is columns and self._kept.version == version:
            return self._kept.filters, self._kept.B
        with full_precision(columns.device):
            U, T = factor(columns, dtype)
        filters = self.fold_weight(U.mT)
        responses = self._responses(filters)
        with full_precision(columns.device):
            B = -(responses.to(T.dtype).mT @ T).to(dtype)[..., None, None]
        self._kept = None if version is None else _KeptConvolutions(columns, version, filters, B)
        return filters, B

    def _constant_version(self, columns: Tensor, dtype: torch.dtype) -> Hashable:
        """Return the versions of the columns and of the weight; None if nothing can be kept."""
        if type(self.base_layer) is not nn.Conv2d or torch.compiler.is_compiling() or is_transformed():
            return None
        tensors = (columns, self.base_layer.weight)
        if any(tensor.requires_grad or tensor.is_inference() for tensor in tensors):
            return None
        return dtype, tuple((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors)

    def _responses(self, patches: Tensor) -> Tensor:
        """Multiply W with patches (r, in, kh, kw) by calling the base layer, wherever its weight is.

        Each patch is put into an image of zeros, where one output sees the whole patch and no padding.

        Returns:
            The products (r, out).
        """
        base, convolution = self.base_layer, self.convolution
        left, _, top, _ = convolution._reversed_padding_repeated_twice
        outputs, windows, sizes = [], [], []
        for padding, stride, dilation, size in zip(
            (top, left), convolution.stride, convolution.dilation, convolution.kernel_size, strict=True
        ):
            output = -(-padding // stride)
            start = output * stride - padding
            end = start + dilation * (size - 1) + 1
            outputs.append(output)
            windows.append(slice(start, end, dilation))
            sizes.append(max(end, padding + 1))  # Padding by reflection needs an image larger than the padding.
        images = patches.new_zeros(patches.shape[0] + 1, patches.shape[1], *sizes)  # The last one gives the bias.
        images[(slice(patches.shape[0]), slice(None), *windows)] = patches
        responses = base(images)[:, :, outputs[0], outputs[1]]
        return responses[:-1] - responses[-1]


class _KeptConvolutions(NamedTuple):
    columns: Tensor
    version: Hashable
    filters: Tensor
    B: Tensor


def wrap(name: str, module: nn.Module) -> HRALayer:
    """Return an adapted layer around a module.

    Args:
        name: the module's name, for the error.
        module: a linear layer or a convolution of one group.

    Raises:
        TargetError: modules of this type cannot be adapted.
    """
    if is_linear(module):
        return HRALinear(module)
    inner = without_lora(module)
    if isinstance(inner, nn.Conv2d) and inner.groups == 1:
        return HRAConv2d(module)
    if isinstance(inner, NonDynamicallyQuantizableLinear):
        raise TargetError(
            f"Cannot adapt {name!r}, the output projection of an nn.MultiheadAttention: it is never called, its weight "
            "is read. Name it in exclude_modules, or train it whole (modules_to_save)."
        )
    kind = f"{type(inner).__name__} of {inner.groups} groups" if isinstance(inner, nn.Conv2d) else type(inner).__name__
    raise TargetError(
        f"Cannot adapt {name!r}, a {kind}: only linear layers that the model calls, and convolutions (Conv2d) of one "
        "group, can be adapted. Choose other target_modules, or name it in exclude_modules."
    )


def without_lora(module: nn.Module) -> nn.Module:
    """Return the module inside PEFT's layers of other adapters, such as LoRAs."""
    inner: Any = getattr(module, "get_base_layer", None)
    return module if inner is None or (held := inner()) is module else without_lora(held)
