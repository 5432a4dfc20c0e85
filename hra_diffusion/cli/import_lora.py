"""``hra-diffusion import-lora``: the adapter nearest to a LoRA, and how much of it was lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.training.config.defaults import find_model

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Write the adapter whose weights are nearest to those of a LoRA, and say how much was lost."""

    lora: tyro.conf.Positional[Path]
    """The LoRA: a .safetensors file in kohya's or diffusers' layout."""
    output: tyro.conf.Positional[Path]
    """The adapter's folder."""
    pretrained_model_name_or_path: str
    """The base model it was made for."""


def main(arguments: Sequence[str]) -> None:
    """Write the adapter and print what was lost."""
    config = parse_settings(ImportConfig, arguments, prog="hra-diffusion import-lora")

    from hra_diffusion.pipelines import fit_lora  # imports torch and diffusers: not for --help

    fit = fit_lora(config.lora, config.output, base=find_model(config.pretrained_model_name_or_path))
    print(f"{config.output}: rank {fit.rank}, {fit.lost:.1%} of the LoRA's update lost; of single layers, at most:")
    for layer, lost in list(fit.layers.items())[:_SHOWN]:
        print(f"  {lost:6.1%}  {layer}")
