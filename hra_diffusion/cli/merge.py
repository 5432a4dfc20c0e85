"""``hra-diffusion merge``: a whole model with adapters in its weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.errors import ConfigError
from hra_diffusion.training.config.defaults import find_model


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Write a whole model, with adapters multiplied into its weights."""

    model: tyro.conf.Positional[str]
    """The base model: a folder in diffusers' layout, a name on the hub, or a single .safetensors file."""
    output: tyro.conf.Positional[Path]
    """The folder to write, which must not exist or be empty."""
    adapters: tuple[str, ...]
    """Adapters with their strengths, FOLDER:STRENGTH; 1 where none is given."""
    combine: Literal["mean", "product", "lie"] = "mean"
    """The adapters' mean, which has no order, or one after the other; "lie" was the mean's name in version 0.1."""
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
    base = find_model(config.model)
    print(merge_hra(strengths, config.output, base=base, combine=combine, dtype=config.dtype))


def adapter_and_strength(text: str) -> tuple[str, float]:
    """Take FOLDER:STRENGTH apart; a folder may have a colon in its name.

    Raises:
        ConfigError: the strength is no number.
    """
    folder, colon, strength = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        return folder, float(strength)
    except ValueError:
        if not Path(folder).is_dir():
            return text, 1.0
        raise ConfigError(
            f"--adapters has {text!r}, but {strength!r} is no number: write FOLDER:STRENGTH, such as {folder}:0.8."
        ) from None
