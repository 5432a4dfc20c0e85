"""``hra-diffusion evaluate``: measure an adapter, and write the numbers and the images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from tqdm import tqdm

from hra_diffusion import evaluation
from hra_diffusion.cli.arguments import parse_settings
from hra_diffusion.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from hra_diffusion.pipelines import Pipeline


@dataclass(frozen=True, kw_only=True)
class _Arguments(EvaluateConfig):
    """Measure an adapter. Missing settings are taken from its training run."""

    adapter: tyro.conf.Positional[Path]
    """The adapter's folder, or the output folder of its training run."""


def main(arguments: Sequence[str]) -> None:
    """Measure an adapter, write the results and print the table."""
    config = parse_settings(_Arguments, arguments, prog="hra-diffusion evaluate")
    from hra_diffusion.out_of_memory import explain_out_of_memory  # imports torch: not for --help

    evaluate = evaluation.evaluate_checkpoints if config.checkpoints else evaluation.evaluate_adapter
    with explain_out_of_memory("measuring", lambda: ["--batch_size 1", *config.memory_flags]):
        print(evaluate(config, progress=progress_bar("measuring")).to_markdown())


def evaluate_run(folder: Path, pipe: "Pipeline") -> str:
    """Evaluate a finished run with a progress bar; see :func:`hra_diffusion.evaluation.evaluate_run`."""
    return evaluation.evaluate_run(folder, pipe, progress_bar("measuring"))


def progress_bar(description: str) -> Callable[[int, int], None]:
    """Return a callback that shows the number of finished images in a progress bar."""
    bar: tqdm | None = None

    def update(count: int, total: int) -> None:
        nonlocal bar
        bar = bar or tqdm(desc=description, total=total, unit="image")
        bar.update(count - bar.n)
        if count == total:
            bar.close()

    return update
