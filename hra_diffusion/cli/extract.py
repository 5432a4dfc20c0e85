"""``hra-diffusion extract``: make an adapter of the difference between two checkpoints, and report the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.cli.layer_losses import print_layer_losses
from hra_diffusion.training.config.base import BaseConfig


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(BaseConfig):
    """Write the adapter whose rotation is nearest to the difference between a fine-tuned model and its base."""

    model: tyro.conf.Positional[str]
    """The fine-tuned model: a folder in diffusers' layout, a single .safetensors file, or a hub name."""
    output: tyro.conf.Positional[Path]
    """The adapter's folder to write."""
    pretrained_model_name_or_path: str
    """Base model that it was fine-tuned from: folder, single file or hub name."""
    rank: int = 8
    """Even rank of the adapter."""


def main(arguments: Sequence[str]) -> None:
    """Write the adapter and print which share of the change is a rotation."""
    config = parse_settings(ExtractConfig, arguments, prog="hra-diffusion extract")

    from hra_diffusion.pipelines import extract_hra  # imports torch and diffusers: not for --help

    base = config.pretrained_model_name_or_path
    result = extract_hra(config.model, config.output, base=base, rank=config.rank, base_options=config.base_options)
    print(
        f"{config.output}: rank {config.rank}; {result.rotation:.1%} of the squared change is its rotation. "
        f"{result.lost:.1%} of the change is lost; by the singular values, at least {result.least:.1%} at any rank."
    )
    print("largest losses of layers:")
    print_layer_losses(result.layers)
