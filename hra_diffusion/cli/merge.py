"""``hra-diffusion merge``: write a whole model with merged adapters."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.errors import ConfigError
from hra_diffusion.resources import find_data
from hra_diffusion.training.config.base import BaseConfig


@dataclass(frozen=True, kw_only=True)
class MergeConfig(BaseConfig):
    """Write a whole model with adapters merged into its weights, in float32 on the CPU."""

    model: tyro.conf.Positional[str]
    """Base model: a folder in diffusers' layout, a hub name, or a single .safetensors file."""
    output: tyro.conf.Positional[Path]
    """The folder to write; it must be new or empty."""
    adapters: tuple[str, ...]
    """Adapters with their strengths, FOLDER:STRENGTH. The default strength is 1."""
    combine: Literal["mean", "product", "lie"] = "mean"
    """Combination of several adapters: their mean, without an order, or their product. "lie" is the mean's old name."""
    dtype: Literal["fp16", "bf16", "fp32"] = "fp32"
    """Precision of the files."""


def main(arguments: Sequence[str]) -> None:
    """Write the model and print its folder."""
    config = parse_settings(MergeConfig, arguments, prog="hra-diffusion merge")
    strengths = dict(map(adapter_and_strength, config.adapters))
    if len(strengths) != len(config.adapters):
        raise ConfigError("--adapters names an adapter twice: give it once, with the sum of its strengths.")

    from hra_diffusion.pipelines import merge_hra  # imports torch and diffusers: not for --help

    combine = "mean" if config.combine == "lie" else config.combine
    folder = merge_hra(
        strengths,
        config.output,
        base=config.model,
        base_options=config.base_options,
        combine=combine,
        dtype=config.dtype,
    )
    print(folder)


def adapter_and_strength(text: str) -> tuple[str, float]:
    """Parse FOLDER:STRENGTH; a folder may have a colon in its name.

    Raises:
        ConfigError: the strength is not a number.
    """
    folder, colon, strength = text.rpartition(":")
    if not colon or Path(find_data(text)).exists():
        return find_data(text), 1.0
    try:
        return find_data(folder), float(strength)
    except ValueError:
        if not Path(folder).is_dir():
            return text, 1.0
        raise ConfigError(
            f"--adapters has {text!r}, but {strength!r} is not a number: write FOLDER:STRENGTH, such as {folder}:0.8."
        ) from None
