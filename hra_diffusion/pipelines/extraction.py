"""Extraction of an adapter from two checkpoints: the rotation that is nearest to their difference.

A layer's change ΔW = W' − W is a rotation W H − W of its inputs in part only, unless an adapter was merged. By Mirsky's
inequality, no orthogonal H of any rank is nearer than the singular values allow,

    ‖W H − W'‖ ≥ ‖σ(W) − σ(W')‖

Source: Mirsky, "Symmetric gauge functions and unitarily invariant norms", 1960.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.adapter.layers import wrap
from hra_diffusion.errors import ModelError, TargetError
from hra_diffusion.formats.derived import check_even_rank, check_output
from hra_diffusion.householder.compact_wy import factor
from hra_diffusion.householder.planes import rotation_planes
from hra_diffusion.householder.procrustes import nearest_chain, nearest_chain_within
from hra_diffusion.pipelines.components import denoiser_name, models, text_encoders
from hra_diffusion.pipelines.fitting import adaptable_modules, loaded, write_chains
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.text import shorten

logger = logging.getLogger(__name__)

_UNCHANGED = 1e-6
"""Relative change of a weight that is rounding of float32."""


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """The distance between an extracted adapter and the difference of two checkpoints.

    Attributes:
        lost: ‖W H − W'‖ / ‖W' − W‖ over all changed layers: 0 for merged adapters, 1 if nothing is kept.
        least: a lower bound of it for adapters of any rank, by the singular values.
        layers: `lost` of every changed layer, the largest first.
        left_out: names of other changed parameters: biases, normalizations, embeddings, autoencoder.
    """

    lost: float
    least: float
    layers: Mapping[str, float]
    left_out: tuple[str, ...]

    @property
    def rotation(self) -> float:
        """The share 1 − lost² of the squared change that the adapter's rotation explains."""
        return max(0.0, 1 - self.lost**2)


@dataclass(frozen=True, kw_only=True)
class _Layer:
    columns: Tensor
    residual: float
    least: float
    norm: float


def extract_hra(
    model: str | Path | Pipeline,
    output: str | Path,
    *,
    base: str | Path | Pipeline,
    rank: int = 8,
    base_options: Mapping[str, Any] | None = None,
) -> Extraction:
    """Write the rotation nearest to the difference of two checkpoints.

    Args:
        model: the fine-tuned model: a folder, a single file, a name on the hub, or a pipeline without adapters.
        output: the adapter's folder to write.
        base: the model that it was fine-tuned from.
        rank: the adapter's rank, an even number.
        base_options: options of `load_pipeline` for the base: revision, variant, vae.

    Raises:
        ConfigError: the rank is odd.
        ModelError: a model cannot be found, both are of different architectures, or no layer differs.
        OutputError: the folder holds an adapter already, or cannot be written.
    """
    output, options = Path(output), base_options or {}
    check_output(output)
    check_even_rank(rank)
    before, after = loaded(base, options), loaded(model, {})
    by_component: dict[str, dict[str, _Layer]] = {}
    left_out: list[str] = []
    for name, old in models(before).items():
        new = models(after).get(name)
        changed = [] if new is None else _changed_parameters(name, old, new)
        if name == denoiser_name(before) or name in text_encoders(before):
            by_component[name] = dict(_layers(old, new, changed, rank)) if new is not None else {}
        covered = {f"{module}.weight" for module in by_component.get(name, ())}
        left_out += [f"{name}.{parameter}" for parameter in changed if parameter not in covered]
    by_component = {name: layers for name, layers in by_component.items() if layers}
    if not by_component:
        raise ModelError(
            "The two models do not differ in any linear layer or convolution: there is nothing to extract."
        )
    if left_out:
        logger.warning(
            "%d other parameters differ, too, and are left out, since they are no rotations: %s.",
            len(left_out),
            shorten(left_out, 4),
        )
    chains = {
        name: {module: layer.columns for module, layer in layers.items()} for name, layers in by_component.items()
    }
    write_chains(output, chains, pipe=before, rank=rank, revision=options.get("revision"))
    return _result(by_component, tuple(left_out))


def _result(by_component: Mapping[str, Mapping[str, _Layer]], left_out: tuple[str, ...]) -> Extraction:
    every = {f"{name}.{module}": layer for name, layers in by_component.items() for module, layer in layers.items()}
    norm = math.hypot(*(layer.norm for layer in every.values()))
    lost = {name: layer.residual / layer.norm for name, layer in every.items()}
    return Extraction(
        lost=math.hypot(*(layer.residual for layer in every.values())) / norm,
        least=math.hypot(*(layer.least for layer in every.values())) / norm,
        layers=dict(sorted(lost.items(), key=lambda item: -item[1])),
        left_out=left_out,
    )


def _changed_parameters(component: str, old: nn.Module, new: nn.Module) -> list[str]:
    """Return the names of parameters that differ by more than rounding.

    Raises:
        ModelError: the models are of different architectures.
    """
    ours, theirs = dict(old.named_parameters()), dict(new.named_parameters())
    if different := sorted(
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape
    ):
        raise ModelError(
            f"The two models are of different architectures: their {component} differs in {shorten(different, 3)}."
        )
    return [
        name
        for name, weight in ours.items()
        if _differs(weight.detach().cpu().float(), theirs[name].detach().cpu().float())
    ]


def _differs(old: Tensor, new: Tensor) -> bool:
    """Whether float32 tensors differ by more than rounding: of float32, or of a file in half precision."""
    if (new - old).norm() <= _UNCHANGED * old.norm():
        return False
    return not any(torch.equal(old.to(dtype).float(), new) for dtype in (torch.float16, torch.bfloat16))


def _layers(old: nn.Module, new: nn.Module, changed: list[str], rank: int) -> Iterator[tuple[str, _Layer]]:
    """Yield the nearest chain of each changed linear layer and convolution."""
    for name in adaptable_modules(old):
        if f"{name}.weight" in changed:
            try:
                layers = [wrap(name, model.get_submodule(name)) for model in (old, new)]
            except TargetError:
                continue
            weights = [layer.unfold_weight(layer.original_weight()).detach().cpu().double() for layer in layers]
            yield name, _fit(*weights, rank=rank)


def _fit(W: Tensor, changed: Tensor, rank: int) -> _Layer:
    """Return the chain of at most `rank` reflections for a weight W (out, d) and its changed one."""
    update = changed - W
    X, sigma, Yh = torch.linalg.svd(update, full_matrices=False)
    B, A = X[:, :rank] * sigma[:rank], Yh[:rank]
    # The first is the nearest to a small general change, cut to the rank; the second is exact for a merged adapter,
    # also in a layer of few outputs, where many rotations would have the same effect.
    candidates = [
        rotation_planes(nearest_chain(W, B, A)[0])[0][:, :rank],
        nearest_chain_within(A.mT, W, B, A)[0],
    ]
    deltas = [torch.matmul(*factor(columns).low_rank_delta(W)) for columns in candidates]
    residuals = [torch.linalg.matrix_norm(delta - update).item() for delta in deltas]
    best = min(range(len(candidates)), key=residuals.__getitem__)
    return _Layer(
        columns=candidates[best].float(),
        residual=residuals[best],
        least=(torch.linalg.svdvals(W) - torch.linalg.svdvals(changed)).norm().item(),
        norm=torch.linalg.matrix_norm(update).item(),
    )
