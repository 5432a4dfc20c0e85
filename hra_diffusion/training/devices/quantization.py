"""Weight quantization of the frozen model's linear layers.

    int8    W ≈ diag(s) Q,   Q integers from −127 to 127, one scale s per row
    nf4     W ≈ s Q,         Q of 16 quantiles of the normal distribution, one scale s per 64 weights (arXiv 2305.14314)

An adapted layer only calls its base layer: its reflections train as before and are not quantized.
"""

import importlib
from typing import Any, Literal

from torch import nn

from hra_diffusion.errors import ConfigError


def quantize(model: nn.Module, kind: Literal["int8", "nf4"] = "int8") -> None:
    """Quantize a model's linear layers in place: to int8 with torchao, to nf4 with bitsandbytes.

    Raises:
        ConfigError: the package is not installed.
    """
    if kind == "int8":
        torchao = _package("torchao.quantization", kind)
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
        return
    layers = _package("bitsandbytes.nn", kind)
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if type(layer) is nn.Linear:
                setattr(parent, name, _to_nf4(layer, layers))


def _to_nf4(layer: nn.Linear, layers: Any) -> nn.Module:
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
    return quantized.to(layer.weight.device)  # this move quantizes


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--quantization {extra} needs the package {name.partition('.')[0]} ({error}): install it with "
            f"pip install 'hra-diffusion[{extra}]', or leave the flag out."
        ) from error
