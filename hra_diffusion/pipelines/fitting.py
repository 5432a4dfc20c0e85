"""From a LoRA to the HRA adapter that comes nearest to it, and how near that is."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.adapter import HRAConfig, HRAModel
from hra_diffusion.adapter.layers import wrap
from hra_diffusion.adapter.state import COLUMNS
from hra_diffusion.adapter.targets import is_linear
from hra_diffusion.errors import AdapterFileError, OutputError
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.folders import holds_adapter
from hra_diffusion.formats.lora import Factors, Place, read_lora
from hra_diffusion.formats.peft import adapter_files
from hra_diffusion.householder.procrustes import nearest_chain
from hra_diffusion.pipelines.components import models, offloading_suspended
from hra_diffusion.pipelines.models import load_pipeline


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How near an adapter comes to a LoRA.

    Attributes:
        rank: the adapter's number of reflections a layer.
        lost: ‖W H − W − ΔW‖ / ‖ΔW‖ over all layers together: 0 where the LoRA is a rotation, 1 where nothing is kept.
        layers: the same for each layer, the worst first.
    """

    rank: int
    lost: float
    layers: Mapping[str, float]


def fit_lora(file: str | Path, folder: str | Path, base: Any) -> Fit:
    """Write the HRA adapter whose weights W H are nearest to those of a LoRA, W + ΔW.

    A LoRA of rank r becomes an adapter of rank 2 r, which has as many numbers in a square layer. A LoRA also stretches
    weights, which no rotation can follow: that part is lost, and reported. See docs/maths.md.

    Args:
        file: the LoRA, a safetensors file in kohya's or diffusers' layout.
        folder: where to write the adapter.
        base: the model it was made for, as a folder, a name on the hub, or a pipeline without adapters.

    Raises:
        AdapterFileError: the file is damaged, no LoRA, or for another model.
        ConfigError: the pipeline has adapters already.
        ModelError: the base cannot be found.
        OutputError: the folder holds an adapter already, or cannot be written.
    """
    file, folder = Path(file), Path(folder)
    if holds_adapter(folder):
        raise OutputError(f"{folder} holds an adapter already: choose another folder.")
    pipe = load_pipeline(str(base)) if isinstance(base, str | Path) else base
    with offloading_suspended(pipe):
        components = models(pipe)
        factors = read_lora(file, [(name, module) for name, each in components.items() for module in _modules(each)])
        chains, lost, size = _fit_layers(components, factors, file)
        rank = max(columns.shape[1] for columns in chains.values())
        rank += rank % 2
        contents: dict[Path, bytes] = {}
        for name in dict.fromkeys(component for component, _ in chains):
            own = {module: columns for (component, module), columns in chains.items() if component == name}
            files = _adapter_files(components[name], own, rank, getattr(pipe, "name_or_path", None) or None)
            contents |= {folder / name / part: data for part, data in files.items()}
    write_together(contents)
    layers = {f"{component}.{module}": lost[component, module] / size[component, module] for component, module in lost}
    return Fit(
        rank=rank,
        lost=math.hypot(*lost.values()) / math.hypot(*size.values()),
        layers=dict(sorted(layers.items(), key=lambda item: -item[1])),
    )


def _fit_layers(
    components: Mapping[str, nn.Module], factors: Mapping[Place, Factors], file: Path
) -> tuple[dict[Place, Tensor], dict[Place, float], dict[Place, float]]:
    """Find the nearest chain of each layer, what it lacks, and how large the update is; without updates of nothing."""
    chains: dict[Place, Tensor] = {}
    lost: dict[Place, float] = {}
    size: dict[Place, float] = {}
    for (component, module), update in factors.items():
        layer = wrap(module, components[component].get_submodule(module))
        weight = layer.unfold_weight(layer.own_weight())
        if (len(update.B), update.A.shape[1]) != tuple(weight.shape):
            raise AdapterFileError(
                f"{file} is for another model: its update of {component}.{module} is for a weight of "
                f"{(len(update.B), update.A.shape[1])} instead of {tuple(weight.shape)}."
            )
        norm = torch.linalg.matrix_norm(update.B @ update.A).item()
        if norm > 0:
            columns, residual = nearest_chain(weight, update.B, update.A)
            chains[component, module] = columns
            lost[component, module], size[component, module] = residual.item(), norm
    if not chains:
        raise AdapterFileError(f"{file} changes nothing: all its updates are zero.")
    return chains, lost, size


def _adapter_files(
    model: nn.Module, chains: Mapping[str, Tensor], rank: int, base_model: str | Path | None
) -> dict[str, bytes]:
    config = HRAConfig(r=rank, target_modules=list(chains), base_model_name_or_path=base_model and str(base_model))
    state = {
        f"{module}{COLUMNS}": nn.functional.pad(columns, (0, rank - columns.shape[1]))
        for module, columns in chains.items()
    }
    adapted = HRAModel(model, config, state_dict=state)
    try:
        return adapter_files(adapted)
    finally:
        adapted.unload()


def _modules(model: nn.Module) -> list[str]:
    return [name for name, each in model.named_modules() if is_linear(each) or isinstance(each, nn.Conv2d)]
