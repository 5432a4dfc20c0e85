"""Tools of the benchmarks: interleaved rounds, medians, peak memory of a separate process, tables of ratios."""

import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from hra_diffusion.training.dry_run import peak_memory


def seconds(action: Callable[[], object]) -> float:
    """Time one call, including its work on the device."""
    synchronize()
    began = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - began


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(actions: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return the median time of each action over rounds that call every action in turn.

    One more round before them is not counted.
    """
    timings: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            duration = action()
            if number:
                timings[name].append(duration)
    return {name: statistics.median(durations) for name, durations in timings.items()}


def peak_gigabytes(arguments: Sequence[str], runs: int = 3) -> float:
    """Return the peak memory of this script with other arguments; the script prints it with `process_peak`.

    The median of several runs: an allocator's memory varies by a percent from run to run.
    """
    command = [sys.executable, sys.argv[0], *arguments]
    finished = [subprocess.run(command, capture_output=True, text=True, check=False) for _ in range(runs)]
    return statistics.median(float(run.stdout.split()[-1]) if run.returncode == 0 else float("nan") for run in finished)


def trained(model: torch.nn.Module) -> int:
    """Return the number of trainable parameters of a model."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)


def process_peak() -> float:
    """Return the peak memory of this process, in GB: of the device, or of the CPU without a device."""
    return peak_memory() / 1e9


def describe_machine() -> str:
    """Return the device, the number of threads and the versions of the libraries."""
    versions = [f"{name} {_version(name)}" for name in ("torch", "diffusers", "transformers", "peft", "lycoris-lora")]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return f"{device}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {', '.join(versions)}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "–"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows as a Markdown table with a heading."""
    print(f"\n### {title}\n", format_table(columns, rows), sep="\n", flush=True)


def format_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as a Markdown table; numbers with three significant digits."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
