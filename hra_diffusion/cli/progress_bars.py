"""Progress bars of phases that take longer than a second."""

from typing import Any

DELAY = 1.0
"""Seconds after which a bar appears."""


class ProgressBars:
    """A reporter of :mod:`hra_diffusion.progress` that shows a bar for each phase."""

    def __init__(self) -> None:
        self._bars: dict[str, Any] = {}

    def __call__(self, phase: str, count: int, total: int) -> None:
        """Show the number of finished items; the last one ends the bar."""
        if count == 1:
            from tqdm import tqdm  # not for --help

            self._bars[phase] = tqdm(desc=phase, total=total, delay=DELAY)
        bar = self._bars.get(phase)
        if bar is not None:
            bar.update()
            if count == total:
                self._bars.pop(phase).close()
