"""Progress of a request after each denoising step: the event, and the end of a stopped generation."""

import threading
import time
from collections.abc import Callable
from typing import Any

from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.studio.engine.generation.events import Event, Progress
from hra_diffusion.studio.engine.generation.preview import Preview
from hra_diffusion.studio.engine.generation.requests import GenerateRequest


class StopGeneration(Exception):  # noqa: N818 - no error
    """Ends a pipeline call between two steps."""


class StepProgress:
    """The callback of all pipeline calls of a request.

    Args:
        request: the request.
        preview: the preview of latents.
        stop: ends the generation after the current step.
        emit: takes the events.

    Attributes:
        image: index of the current image.
        refines: whether its second pass is running, whose steps take longer by its pixels.
    """

    def __init__(
        self, request: GenerateRequest, preview: Preview, stop: threading.Event, emit: Callable[[Event], None]
    ) -> None:
        self._request, self._preview, self._stop, self._emit = request, preview, stop, emit
        self._start, self._done, self._first_steps = time.monotonic(), 0.0, 0
        self.image, self.refines = 0, False

    def __call__(self, pipe: Pipeline, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Emit the progress of a step.

        Raises:
            StopGeneration: the request was stopped.
        """
        if self._stop.is_set():
            raise StopGeneration
        request, steps = self._request, pipe.num_timesteps
        pixels = request.hires_scale**2
        if not self.refines:
            self._first_steps = steps
        second_steps = steps if self.refines else request.second_steps
        self._done += pixels if self.refines else 1
        total = request.count * (self._first_steps + second_steps * pixels)
        self._emit(
            Progress(
                image=self.image,
                images=request.count,
                step=step + 1,
                steps=steps,
                seconds_left=(time.monotonic() - self._start) / self._done * max(0, total - self._done),
                preview=self._preview(tensors["latents"], request.height / request.width),
            )
        )
        return {}
