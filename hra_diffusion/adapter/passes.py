"""Factoring before a pass of a whole model: all active chains of one shape together."""

from collections import defaultdict
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hra_diffusion.adapter.kept_factors import KeptFactors
from hra_diffusion.adapter.layer import HRALayer
from hra_diffusion.householder.factoring import factor_chains


def factor_together(layers: Iterable[HRALayer], in_pass: list[bool]) -> None:
    """Factor the active chains of several layers, unless they are known.

    Skipped, and factored when their layer is called: sharded or offloaded columns.

    Args:
        layers: the layers of a model.
        in_pass: see `KeptFactors`.
    """
    batches: defaultdict[Hashable, list[tuple[HRALayer, Tensor, Hashable]]] = defaultdict(list)
    for layer in layers:
        if not layer.reflects_input or not layer.is_active:
            continue
        version, dtype, known = layer.factors.version(layer.mixture), layer.expected_dtype, layer.factors.active
        if known and known.outlast_a_pass and known.version == version and known.factors.U.dtype == dtype:
            continue
        layer.factors.active = None
        if layer.is_blended and any(u.is_meta for u in layer.hra_u.values()):
            continue
        columns = layer.active_columns()
        if columns is not None and not (is_traceable_wrapper_subclass(columns) or columns.is_meta):
            batches[columns.shape, columns.dtype, columns.device, dtype].append((layer, columns, version))
    for batch in batches.values():
        with torch.inference_mode(False), torch.enable_grad():
            factored = factor_chains([columns for _, columns, _ in batch], batch[0][0].expected_dtype)
        for (layer, columns, version), factors in zip(batch, factored, strict=True):
            layer.factors.active = KeptFactors(version, columns, factors, in_pass)


def factor_in_graph(layers: Iterable[HRALayer]) -> None:
    """Factor the active chains of several layers in the graph of a compiled pass.

    Columns are inputs of the graph, and those of blends are known when they are set: no strength is a constant of it.
    """
    batches: defaultdict[Hashable, list[tuple[HRALayer, Tensor]]] = defaultdict(list)
    for layer in layers:
        if layer.reflects_input and layer.is_active:
            known = layer.factors.active if layer.is_blended else None
            columns = layer.active_columns() if known is None else known.columns
            if columns is not None:
                batches[columns.shape, columns.dtype, columns.device, layer.expected_dtype].append((layer, columns))
    for batch in batches.values():
        factored = factor_chains([columns for _, columns in batch], batch[0][0].expected_dtype)
        for (layer, columns), factors in zip(batch, factored, strict=True):
            layer.factors.active = KeptFactors(None, columns, factors, [False])


def leave_graph(layers: Iterable[HRALayer]) -> None:
    """Forget the factors of a compiled pass."""
    for layer in layers:
        if not layer.is_blended:
            layer.factors.active = None
