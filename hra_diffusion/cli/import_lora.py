"""``hra-diffusion import-lora``: fit an adapter to a LoRA, and print the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.cli.layer_losses import print_layer_losses
from hra_diffusion.training.config.base import BaseConfig


@dataclass(frozen=True, kw_only=True)
class ImportConfig(BaseConfig):
    """Write the adapter nearest to a LoRA, and print the lost share of its update."""

    lora: tyro.conf.Positional[Path]
    """The LoRA: a .safetensors file in the layout kohya or diffusers, or a folder in the layout peft."""
    output: tyro.conf.Positional[Path]
    """The adapter's folder to write."""
    pretrained_model_name_or_path: str
    """Base model of the LoRA: folder or hub name."""


def main(arguments: Sequence[str]) -> None:
    """Write the adapter and print the lost share of the update."""
    config = parse_settings(ImportConfig, arguments, prog="hra-diffusion import-lora")

    from hra_diffusion.pipelines import fit_lora  # imports torch and diffusers: not for --help

    base = config.pretrained_model_name_or_path
    fit = fit_lora(config.lora, config.output, base=base, base_options=config.base_options)
    print(f"{config.output}: rank {fit.rank}, {fit.lost:.1%} of the LoRA's update lost; largest losses of layers:")
    print_layer_losses(fit.layers)
