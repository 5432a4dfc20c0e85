"""``hra-diffusion compress``: write an adapter with fewer reflections, with a stated error."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from hra_diffusion.cli.arguments import parse_settings


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """Write an adapter without its smallest rotations, of a lower rank or within an error."""

    adapter: tyro.conf.Positional[str]
    """The adapter's folder, the output folder of its training run, or a repository on the hub."""
    output: tyro.conf.Positional[Path]
    """The adapter's folder to write."""
    rank: int | None = None
    """Even rank of each layer of the new adapter."""
    error: float | None = None
    """Limit of the relative error ‖H − H'‖ / ‖H − I‖, between 0 and 1: each layer keeps the rank that it needs. PEFT
    does not read such an adapter."""


def main(arguments: Sequence[str]) -> None:
    """Write the adapter and print its ranks, size and error."""
    config = parse_settings(CompressConfig, arguments, prog="hra-diffusion compress")

    from hra_diffusion.formats.compression import compress_adapter  # imports torch: not for --help

    result = compress_adapter(config.adapter, config.output, rank=config.rank, error=config.error)
    (least, most), (before, after) = result.ranks, result.parameters
    ranks = f"rank {most}" if least == most else f"ranks {least} to {most}"
    print(f"{config.output}: {ranks}, {after:,} of {before:,} numbers, relative error {result.error:.1%}")
