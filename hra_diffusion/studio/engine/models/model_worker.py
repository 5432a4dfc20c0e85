"""The queue of the base model: one thread serves one request at a time, so that requests never mix adapters.

A request yields an iterator of events. Closing the iterator or setting the stop flag ends it within a step.
The weights are loaded on first use; requests wait in the queue meanwhile.
"""

import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from hra_diffusion.errors import AdapterFileError, BusyError, ConfigError, HRAError
from hra_diffusion.formats.folders import RecordedBase, recorded_base
from hra_diffusion.out_of_memory import explain_out_of_memory
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.generation.conditions import find_control
from hra_diffusion.studio.engine.generation.events import Event, Loading, Queued
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.generation.schedulers import check_scheduler
from hra_diffusion.studio.engine.models.base import Base
from hra_diffusion.studio.engine.models.bases import Bases
from hra_diffusion.studio.engine.setting_error import SettingError
from hra_diffusion.studio.engine.uploads import Uploads

if TYPE_CHECKING:
    from hra_diffusion.studio.engine.generation.generator import Generator

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
_POLL_SECONDS = 0.2
"""Interval for checking the stop flag of a queued request."""


class ModelWorker:
    """A base model and the thread of its generator.

    Args:
        base: the facts of the model, or several of which requests choose one.
        library: the available adapters.
        uploads: initial images and conditions.
        max_waiting: largest number of requests in the queue; further ones are refused.
        mixed_precision: precision of training jobs: no, fp16 or bf16.
        placement: options of `pipelines.load_base`: dtype, offload, vae_tiling, vae_slicing.
    """

    def __init__(
        self,
        base: Base | Bases,
        library: Library,
        uploads: Uploads,
        *,
        max_waiting: int = 16,
        mixed_precision: str = "no",
        placement: Mapping[str, Any] | None = None,
    ) -> None:
        self.bases = base if isinstance(base, Bases) else Bases([base])
        self.base = self.bases.default
        self._mixed_precision, self._placement = mixed_precision, placement
        self.library, self.uploads, self.max_waiting = library, uploads, max_waiting
        self._generator: Generator | None = None
        self._loaded: Base | None = None
        self._loading = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._admission = threading.Lock()
        self._pending = 0

    @property
    def pending(self) -> int:
        """Return the number of requests, running and queued."""
        return self._pending

    @property
    def generator(self) -> "Generator":
        """Return the loaded generator; without one, that of the default base.

        Raises:
            ModelError: the weights cannot be loaded; the next call tries again.
        """
        with self._loading:
            return self._generator or self._load_generator(self.base)

    def generator_of(self, base: Base) -> "Generator":
        """Return the generator of a base; the weights of another one are unloaded before.

        Raises:
            ModelError: the weights cannot be loaded; the next call tries again.
        """
        with self._loading:
            return self._generator if self._generator and self._loaded == base else self._load_generator(base)

    def _load_generator(self, base: Base) -> "Generator":
        """Unload the weights of another base, and load those of this one; the lock is held."""
        from accelerate.utils.memory import clear_device_cache  # as diffusers below, takes seconds: not for the page

        from hra_diffusion.studio.engine.generation.generator import Generator

        self._generator = self._loaded = None
        clear_device_cache(garbage_collection=True)
        self._generator = Generator(self._recorded(base), self.library, self.uploads, self._placement)
        self._loaded = base
        return self._generator

    @property
    def is_loaded(self) -> bool:
        """Whether weights are loaded."""
        return self._generator is not None

    @property
    def recorded_base(self) -> RecordedBase:
        """The default base with the precision of images on a GPU.

        This is the precision of the runs of the base's adapters in the library. If these differ, or there are none, it
        is the precision of training jobs.
        """
        return self._recorded(self.base)

    def _recorded(self, base: Base) -> RecordedBase:
        precisions: set[str] = set()
        for entry in self.library.entries():
            if entry.base == base.name:
                with suppress(AdapterFileError):
                    precisions.add(recorded_base(entry.folder).mixed_precision)
        precision = precisions.pop() if len(precisions) == 1 else self._mixed_precision
        return RecordedBase(name=base.source, options=base.options, mixed_precision=precision)

    def warm_up(self) -> None:
        """Start to load the weights in the background; errors are logged."""

        def load() -> None:
            try:
                self.generator  # noqa: B018
            except HRAError as error:
                logger.error("%s", error)

        self._thread.submit(load)

    def stream(self, request: GenerateRequest, stop: threading.Event) -> Iterator[Event]:
        """Generate images and yield the events of the request; end early, without an error, on ``stop``.

        Raises:
            BusyError: the queue is full.
            ModelError: the model cannot be loaded.
            HRAError: the request cannot be generated.
        """
        base = self.check(request)
        events: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                if not stop.is_set():
                    with explain_out_of_memory("generating images", lambda: ["smaller or fewer images"]):
                        self.generator_of(base)(request, stop, events.put)
            except BaseException as error:
                events.put(error)
            finally:
                events.put(None)

        ahead = self._pending
        future = self._submit(work)
        try:
            if ahead and self._generator:
                yield Queued(ahead)
            elif self._loaded != base:
                yield Loading()
            while not (stop.is_set() and future.cancel()):
                with suppress(queue.Empty):
                    if (event := events.get(timeout=_POLL_SECONDS)) is None:
                        return
                    if isinstance(event, BaseException):
                        raise event
                    yield event
        finally:
            stop.set()

    def run(self, work: Callable[[Pipeline], Result], base: Base | None = None) -> Result:
        """Call a function with the pipeline of a base, by default the first one, without adapters and other requests.

        Raises:
            BusyError: the queue is full.
            ModelError: the model cannot be loaded.
        """
        return self._submit(lambda: work(self.generator_of(base or self.base).base_pipeline())).result()

    def close(self) -> None:
        """End the thread after the current request."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _submit(self, work: Callable[[], Result]) -> "Future[Result]":
        with self._admission:
            if self._pending > self.max_waiting:
                raise BusyError(f"The studio is busy: {self._pending} requests wait already. Try again in a moment.")
            self._pending += 1
        future = self._thread.submit(work)
        future.add_done_callback(self._finish)
        return future

    def _finish(self, _: "Future[Any]") -> None:
        with self._admission:
            self._pending -= 1

    def check(self, request: GenerateRequest) -> Base:
        """Return the base of a request; raise HRAError if the request does not suit it, the library or the uploads."""
        base = self.bases.get(request.base)
        check_scheduler(request.scheduler, base.schedulers)
        step = base.multiple
        for side in (request.width, request.height):
            if side % step:
                size = max(step, side // step * step)
                raise ConfigError(f"The sides of this model's images are multiples of {step} pixels: give {size}.")
        if request.mask and not request.image:
            raise SettingError("mask_image", "needs a start image: choose one, or remove the mask.")
        for digest in (request.image, request.mask):
            if digest:
                self.uploads.path(digest)
        control = find_control([self.library.entry(use.name) for use in request.adapters])
        if control and not request.condition:
            raise ConfigError(
                f"The control {control.name!r} needs an image: upload or sketch one under “Control (ControlNet)”."
            )
        if request.condition:
            self.uploads.path(request.condition)
        return base
