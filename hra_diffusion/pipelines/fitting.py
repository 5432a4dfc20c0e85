"""Import of a LoRA: the nearest HRA adapter, and its distance from the LoRA."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hra_diffusion.adapter import HRAConfig
from hra_diffusion.adapter.layers import wrap
from hra_diffusion.adapter.state import COLUMNS
from hra_diffusion.adapter.targets import is_linear
from hra_diffusion.errors import AdapterFileError
from hra_diffusion.formats.derived import check_output
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.lora import Factors, ModuleKey, read_lora
from hra_diffusion.formats.peft import adapter_files
from hra_diffusion.householder.procrustes import nearest_chain
from hra_diffusion.model import HRAModel
from hra_diffusion.pipelines.components import (
    base_files_of,
    models,
    offloading_suspended,
    output_widths,
    transformer_class,
)
from hra_diffusion.pipelines.models import load_pipeline
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.resources import find_data


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The distance between an adapter and a LoRA.

    Attributes:
        rank: the adapter's number of reflections a layer.
        lost: ‖W H − W − ΔW‖ / ‖ΔW‖ over all layers together: 0 for a LoRA that is a rotation, 1 if nothing is kept.
        layers: the same for every layer, the largest first.
    """

    rank: int
    lost: float
    layers: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class _LayerFit:
    """The nearest chain of one layer.

    Attributes:
        columns: of the chain (d, r).
        residual: ‖W H − W − ΔW‖.
        norm: ‖ΔW‖.
    """

    columns: Tensor
    residual: float
    norm: float


def fit_lora(
    lora: str | Path,
    output: str | Path,
    *,
    base: str | Path | Pipeline,
    base_options: Mapping[str, Any] | None = None,
) -> Fit:
    """Write the HRA adapter whose weights W H are nearest to a LoRA's, W + ΔW.

    A LoRA of rank r becomes an adapter of rank 2 r, which has as many numbers in a square layer. A LoRA also stretches
    weights, which no rotation can do: that part is lost, and reported. See docs/maths.md.

    Args:
        lora: a safetensors file in kohya's or diffusers' layout, or a folder in PEFT's.
        output: the adapter's folder.
        base: the LoRA's base model, as a folder, a name on the hub, or a pipeline without adapters.
        base_options: options of `load_pipeline` for the base: revision, variant, vae.

    Raises:
        AdapterFileError: the file is damaged, another kind of adapter, or for another model.
        ConfigError: the pipeline has adapters already.
        ModelError: the base cannot be found.
        OutputError: the folder holds an adapter already, or cannot be written.
    """
    lora, output = Path(lora), Path(output)
    check_output(output)
    options = base_options or {}
    pipe = loaded(base, options)
    with offloading_suspended(pipe):
        components = models(pipe)
        modules = [(name, module) for name, model in components.items() for module in adaptable_modules(model)]
        factors = read_lora(lora, modules, transformer=transformer_class(pipe), widths=output_widths(pipe))
        fits = _fit_layers(components, factors, lora)
        rank = max(fit.columns.shape[1] for fit in fits.values())
        rank += rank % 2
        chains = {
            name: {module: fit.columns for (component, module), fit in fits.items() if component == name}
            for name in dict.fromkeys(component for component, _ in fits)
        }
        write_chains(output, chains, pipe=pipe, rank=rank, revision=options.get("revision"))
    layers = {f"{component}.{module}": fit.residual / fit.norm for (component, module), fit in fits.items()}
    return Fit(
        rank=rank,
        lost=math.hypot(*(fit.residual for fit in fits.values())) / math.hypot(*(fit.norm for fit in fits.values())),
        layers=dict(sorted(layers.items(), key=lambda item: -item[1])),
    )


def _fit_layers(
    components: Mapping[str, nn.Module], factors: Mapping[ModuleKey, Factors], file: Path
) -> dict[ModuleKey, _LayerFit]:
    """Compute the nearest chain of every layer with an update other than zero."""
    fits: dict[ModuleKey, _LayerFit] = {}
    for (component, module), update in factors.items():
        layer = wrap(module, components[component].get_submodule(module))
        weight = layer.unfold_weight(layer.original_weight())
        if (len(update.B), update.A.shape[1]) != tuple(weight.shape):
            raise AdapterFileError(
                f"{file} is for another model: its update of {component}.{module} is for a weight of "
                f"{(len(update.B), update.A.shape[1])} instead of {tuple(weight.shape)}."
            )
        norm = torch.linalg.matrix_norm(update.B @ update.A).item()
        if norm > 0:
            columns, residual = nearest_chain(weight, update.B, update.A)
            fits[component, module] = _LayerFit(columns=columns, residual=residual.item(), norm=norm)
    if not fits:
        raise AdapterFileError(f"{file} changes nothing: all its updates are zero.")
    return fits


def loaded(model: str | Path | Pipeline, options: Mapping[str, Any]) -> Pipeline:
    """Return a pipeline; a folder, a single file or a name on the hub is loaded with options of `load_pipeline`."""
    return load_pipeline(str(find_data(model)), **options) if isinstance(model, str | Path) else model


def write_chains(
    output: Path, chains: Mapping[str, Mapping[str, Tensor]], *, pipe: Pipeline, rank: int, revision: str | None
) -> None:
    """Write an adapter with given columns; the pipeline is unchanged.

    Args:
        output: the folder to write.
        chains: the columns (d, at most `rank`), by component and module.
        pipe: the adapter's base model.
        rank: the adapter's rank.
        revision: the base model's revision, if it was named.

    Raises:
        OutputError: the folder cannot be written.
    """
    components = models(pipe)
    contents: dict[Path, bytes] = {}
    for name, columns in chains.items():
        config = HRAConfig(
            r=rank,
            target_modules=list(columns),
            base_model_name_or_path=str(getattr(pipe, "name_or_path", None) or "") or None,
            revision=revision,
        )
        files = _chain_files(components[name], columns, config)
        contents |= {output / name / part: data for part, data in files.items()}
    contents |= {output / name: data for name, data in base_files_of(pipe).items()}
    write_together(contents)


def _chain_files(model: nn.Module, chains: Mapping[str, Tensor], config: HRAConfig) -> dict[str, bytes]:
    state = {
        f"{module}{COLUMNS}": nn.functional.pad(columns, (0, config.r - columns.shape[1]))
        for module, columns in chains.items()
    }
    adapted = HRAModel(model, config, state_dict=state)
    try:
        return adapter_files(adapted)
    finally:
        adapted.unload()


def adaptable_modules(model: nn.Module) -> list[str]:
    """Return the names of a model's linear layers and convolutions."""
    return [name for name, module in model.named_modules() if is_linear(module) or isinstance(module, nn.Conv2d)]
