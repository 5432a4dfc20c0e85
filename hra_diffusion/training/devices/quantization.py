"""Weight quantization of the frozen model's linear layers.

    int8    W ≈ diag(s) Q,   Q integers from −127 to 127, one scale s per row
    fp8     W ≈ diag(s) Q,   Q numbers of 8 bits with 3 of mantissa (e4m3), one scale s per row
    nf4     W ≈ s Q,         Q of 16 quantiles of the normal distribution, one scale s per 64 weights (arXiv 2305.14314)

An adapted layer only calls its base layer: its reflections train as before and are not quantized.
"""

import importlib
from typing import Any

import torch
from torch import nn

from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config.model import Quantization


def quantize(model: nn.Module, kind: Quantization = "int8", device: torch.device | None = None) -> None:
    """Quantize a model's linear layers in place: to int8 and fp8 with torchao, to nf4 with bitsandbytes.

    Args:
        model: the model, on the CPU if it is too large for the device.
        kind: the format of the weights.
        device: the layers in nf4 are quantized on this device and stay on it, one after another; by default where they
            are.

    Raises:
        ConfigError: the package is not installed.
    """
    if kind != "nf4":
        torchao = _package("torchao.quantization", kind, extra="int8")
        scheme = torchao.Int8WeightOnlyConfig if kind == "int8" else torchao.Float8WeightOnlyConfig
        torchao.quantize_(model, scheme())
        return
    layers = _package("bitsandbytes.nn", kind, extra="nf4")
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear:
                setattr(parent, name, _to_nf4(layer, layers, device or layer.weight.device))


def _to_nf4(layer: nn.Linear, layers: Any, device: torch.device) -> nn.Module:
    quantized = layers.Linear4bit(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        compute_dtype=layer.weight.dtype,
        quant_type="nf4",
        device="meta",
    )
    quantized.weight = layers.Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4", module=quantized)
    quantized.bias = layer.bias
    return quantized.to(device)  # this move quantizes


def _package(name: str, kind: Quantization, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--quantization {kind} needs the package {name.partition('.')[0]} ({error}): install it with "
            f"pip install 'hra-diffusion[{extra}]', or leave the flag out."
        ) from error
