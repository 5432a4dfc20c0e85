"""``hra-diffusion evaluate-control``: measure a control on held-out pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from hra_diffusion import evaluation
from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.cli.evaluate import progress_bar
from hra_diffusion.evaluation.config import EvaluateControlConfig


@dataclass(frozen=True, kw_only=True)
class _Arguments(EvaluateControlConfig):
    """Measure a control on held-out pairs: with the right conditions, with shuffled ones, without."""

    run: tyro.conf.Positional[Path]
    """The output folder of a run of train-control."""


def main(arguments: Sequence[str]) -> None:
    """Measure a control, write the results and print the table."""
    config = parse_settings(_Arguments, arguments, prog="hra-diffusion evaluate-control")
    from hra_diffusion.out_of_memory import explain_out_of_memory  # imports torch: not for --help

    with explain_out_of_memory("measuring", lambda: ["--batch_size 1", *config.memory_flags]):
        print(evaluation.evaluate_control(config, progress=progress_bar("measuring")))
