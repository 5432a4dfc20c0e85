"""The base model, which draws for everybody, one request after the other on a thread of its own.

So requests never mix adapters: whatever else happens, the model has those of one request at a time. Who asks gets an
iterator of events, and stops by closing it or by setting its flag; drawing then ends within the step.

Its weights are read when they are first needed; whoever asks in the meantime waits for them as for any other request.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from hra_diffusion.errors import BusyError, ConfigError, HRAError
from hra_diffusion.studio.engine.base import Base
from hra_diffusion.studio.engine.conditions import control_among
from hra_diffusion.studio.engine.events import Event, Reading, Waiting
from hra_diffusion.studio.engine.library import Library
from hra_diffusion.studio.engine.requests import GenerateRequest
from hra_diffusion.studio.engine.schedulers import check_scheduler
from hra_diffusion.studio.engine.uploads import Uploads

if TYPE_CHECKING:
    from hra_diffusion.studio.engine.generator import Generator

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
_GLANCE = 0.2
"""Seconds between two looks at the flag while others are served."""


class Model:
    """A base, what draws with it, and the thread that alone touches that.

    Args:
        base: what is known of the model.
        library: where adapters come from.
        uploads: where images to start from are.
        max_waiting: how many requests may wait; further ones are refused.
    """

    def __init__(self, base: Base, library: Library, uploads: Uploads, *, max_waiting: int = 16) -> None:
        self.base = base
        self.library, self.uploads, self.max_waiting = library, uploads, max_waiting
        self._painter: Generator | None = None
        self._reading = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._admission = threading.Lock()
        self._inside = 0

    @property
    def busy(self) -> int:
        """How many requests are being served or wait."""
        return self._inside

    @property
    def painter(self) -> "Generator":
        """What draws; the weights are read when it is first asked for.

        Raises:
            ModelError: they cannot be; the next time, it is tried again.
        """
        with self._reading:
            if self._painter is None:
                from accelerate import PartialState

                from hra_diffusion.studio.engine.generator import Generator  # imports diffusers, which takes seconds

                device = PartialState().device or "cpu"
                self._painter = Generator(self.base.source, self.library, self.uploads, device)
            return self._painter

    def warm_up(self) -> None:
        """Begin to read the weights, so that the first request finds them there; if that fails, it is logged."""

        def read() -> None:
            try:
                self.painter  # noqa: B018
            except HRAError as error:
                logger.error("%s", error)

        self._thread.submit(read)

    def draw(self, request: GenerateRequest, stop: threading.Event) -> Iterator[Event]:
        """Draw, and tell how it goes on; ends early, without an error, when ``stop`` is set.

        Raises:
            BusyError: too many requests wait.
            ModelError: the model cannot be read.
            HRAError: it cannot be drawn.
        """
        self._check(request)
        events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                if not stop.is_set():
                    self.painter.draw(request, stop, events.put)
            except BaseException as error:
                events.put(error)
            finally:
                events.put(None)

        before = self._inside
        turn = self._submit(work)
        try:
            if self._painter is None:
                yield Reading()
            elif before:
                yield Waiting(before)
            while not (stop.is_set() and turn.cancel()):
                with suppress(queue.Empty):
                    if (event := events.get(timeout=_GLANCE)) is None:
                        return
                    if isinstance(event, BaseException):
                        raise event
                    yield event
        finally:
            stop.set()

    def run(self, work: Callable[[Any], Result]) -> Result:
        """Do something with the pipeline, all to itself and without adapters in it.

        Raises:
            BusyError: too many requests wait.
            ModelError: the model cannot be read.
        """
        return self._submit(lambda: work(self.painter.alone())).result()

    def close(self) -> None:
        """End the thread, once it has done what it does."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _submit(self, work: Callable[[], Result]) -> "Future[Result]":
        with self._admission:
            if self._inside > self.max_waiting:
                raise BusyError(f"The studio is busy: {self._inside} requests wait already. Try again in a moment.")
            self._inside += 1
        future = self._thread.submit(work)
        future.add_done_callback(self._left)
        return future

    def _left(self, _: "Future[Any]") -> None:
        with self._admission:
            self._inside -= 1

    def _check(self, request: GenerateRequest) -> None:
        check_scheduler(request.scheduler, self.base.schedulers)
        step = self.base.multiple
        for side in (request.width, request.height):
            if side % step:
                raise ConfigError(f"This model draws in steps of {step} pixels: take {max(step, side // step * step)}.")
        if request.image:
            self.uploads.path(request.image)
        control = control_among([self.library.entry(use.name) for use in request.adapters])
        if control and not request.condition:
            raise ConfigError(f"{control.name!r} follows an image: draw or choose one under “Follow an image”.")
        if request.condition:
            self.uploads.path(request.condition)
