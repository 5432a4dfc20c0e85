"""``hra-diffusion export-lora``: write an adapter as an exact LoRA for other tools."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.cli.strengths import STRENGTH_HELP, parse_strength
from hra_diffusion.training.config.base import BaseConfig


@dataclass(frozen=True, kw_only=True)
class ExportConfig(BaseConfig):
    """Write an adapter as a LoRA with the same change of every weight."""

    adapter: tyro.conf.Positional[str]
    """The adapter's folder, the output folder of its training run, or a repository on the hub."""
    output: tyro.conf.Positional[Path]
    """The .safetensors file to write, or a folder for the layout peft."""
    layout: Literal["kohya", "diffusers", "peft"] = "kohya"
    """Layout of the LoRA: the names of its tensors. A1111 and ComfyUI read kohya."""
    strength: Annotated[tuple[str, ...], tyro.conf.arg(help=STRENGTH_HELP)] = ("1",)
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Precision of the file."""
    pretrained_model_name_or_path: str | None = None
    """Base model: folder or hub name. By default the adapter's base model."""
    license: Annotated[str | None, tyro.conf.arg(aliases=["--licence"])] = None
    """License for the metadata."""
    thumbnail: Path | None = None
    """Image for the metadata. By default the run's before_after.png."""


def main(arguments: Sequence[str]) -> None:
    """Write the LoRA and print its path."""
    config = parse_settings(ExportConfig, arguments, prog="hra-diffusion export-lora")

    from hra_diffusion.pipelines import export_lora  # imports torch and diffusers: not for --help

    path = export_lora(
        config.adapter,
        config.output,
        base=config.pretrained_model_name_or_path,
        base_options=config.base_options,
        layout=config.layout,
        strength=parse_strength(config.strength),
        dtype=config.dtype,
        license=config.license,
        thumbnail=config.thumbnail,
    )
    print(path)
