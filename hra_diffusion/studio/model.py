"""The base model, which draws for everybody, one request after the other on a thread of its own.

So requests never mix adapters: whatever else happens, the model has those of one request at a time. Who asks gets an
iterator of events, and stops by closing it or by setting its flag; drawing then ends within the step.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from PIL import Image

from hra_diffusion.errors import BusyError, ConfigError
from hra_diffusion.formats.folders import public_name
from hra_diffusion.pipelines import draw, load_hra_weights, load_pipeline, unload_hra_weights, using_hra_adapters
from hra_diffusion.pipelines.components import denoiser_name
from hra_diffusion.studio.library import Entry, Library
from hra_diffusion.studio.preview import Preview
from hra_diffusion.studio.requests import DrawRequest
from hra_diffusion.studio.schedulers import make_scheduler
from hra_diffusion.studio.uploads import Uploads

Result = TypeVar("Result")
_GLANCE = 0.2
"""Seconds between two looks at the flag while others are served."""
_KEPT_ADAPTERS = 12
"""Adapters that stay in the model between requests."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A step is done."""

    picture: int
    """Counted from 0."""
    pictures: int
    step: int
    """Counted from 1."""
    steps: int
    seconds_left: float
    """Of the whole request, if it goes on as it went."""
    preview: bytes
    """A JPEG file."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A picture is done."""

    request: DrawRequest
    """For this picture alone."""
    image: Image.Image


@dataclass(frozen=True)
class Waiting:
    """Others are served first."""

    before: int
    """How many."""


class _StopDrawing(Exception):  # noqa: N818 - it is no error
    """Leaves a pipeline between two steps."""


class Model:
    """A pipeline, the adapters that are in it, and the thread that alone touches them.

    Args:
        name: the model's folder, or its name on the hub.
        library: where adapters come from.
        uploads: where pictures to start from are.
        max_waiting: how many requests may wait; further ones are refused.

    Raises:
        ModelError: it cannot be loaded.
    """

    def __init__(
        self, name: str, library: Library, uploads: Uploads, *, device: Any = "cpu", max_waiting: int = 16
    ) -> None:
        self.source = name
        self.name = public_name(name)
        self.pipe = load_pipeline(name).to(device)
        self.library, self.uploads, self.max_waiting = library, uploads, max_waiting
        self.preview = Preview(self.pipe.vae)
        self._own_scheduler = self.pipe.scheduler
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._admission = threading.Lock()
        self._inside = 0
        self._loaded: dict[str, tuple[str, int]] = {}
        self._count = 0

    @property
    def size(self) -> int:
        """Side of the pictures that the model was made for, in pixels."""
        return getattr(self.pipe, denoiser_name(self.pipe)).config.sample_size * self.pipe.vae_scale_factor

    @property
    def own_scheduler(self) -> Any:
        """The scheduler that it came with."""
        return self._own_scheduler

    @property
    def busy(self) -> int:
        """How many requests are being served or wait."""
        return self._inside

    def draw(self, request: DrawRequest, stop: threading.Event) -> Iterator[Waiting | Progress | Drawn]:
        """Draw, and tell how it goes on; ends early, without an error, when ``stop`` is set.

        Raises:
            BusyError: too many requests wait.
            HRAError: it cannot be drawn.
        """
        self._check(request)
        events: queue.SimpleQueue[Waiting | Progress | Drawn | BaseException | None] = queue.SimpleQueue()

        def work() -> None:
            try:
                self._draw(request, stop, events.put)
            except _StopDrawing:
                pass
            except BaseException as error:
                events.put(error)
            finally:
                events.put(None)

        before = self._inside
        turn = self._submit(work)
        try:
            if before:
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
        """

        def alone() -> Result:
            self._forget(list(self._loaded))
            return work(self.pipe)

        return self._submit(alone).result()

    def left_out(self, prompt: str) -> str:
        """Return the end of a prompt that the model does not read."""
        tokenizer = self.pipe.tokenizer
        start = prompt[:20_000]
        ids = tokenizer(start, truncation=True, max_length=tokenizer.model_max_length).input_ids
        whole = tokenizer(start, truncation=False, verbose=False).input_ids
        if len(whole) <= len(ids):
            return prompt[20_000:]
        return tokenizer.decode(whole[len(ids) - 1 : -1], skip_special_tokens=True) + prompt[20_000:]

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

    def _check(self, request: DrawRequest) -> None:
        make_scheduler(request.scheduler, self._own_scheduler)
        step = self.pipe.vae_scale_factor
        for side in (request.width, request.height):
            if side % step:
                raise ConfigError(f"This model draws in steps of {step} pixels: take {max(step, side // step * step)}.")
        if request.image:
            self.uploads.path(request.image)
        for use in request.adapters:
            self.library.entry(use.name)

    def _draw(self, request: DrawRequest, stop: threading.Event, tell: Callable[[Any], None]) -> None:
        """Draw on the model's thread."""
        if stop.is_set():
            return
        inside = self._bring_in([self.library.entry(use.name) for use in request.adapters])
        strengths = [use.strength for use in request.adapters]
        start, done = time.monotonic(), 0

        for index in range(request.count):

            def after_step(
                pipe: Any, step: int, timestep: Any, told: dict[str, Any], index: int = index
            ) -> dict[str, Any]:
                nonlocal done
                if stop.is_set():
                    raise _StopDrawing
                done, steps = done + 1, pipe.num_timesteps
                left = (time.monotonic() - start) / done * (steps * request.count - done)
                tell(
                    Progress(
                        picture=index,
                        pictures=request.count,
                        step=step + 1,
                        steps=steps,
                        seconds_left=left,
                        preview=self.preview(told["latents"]),
                    )
                )
                return {}

            with using_hra_adapters(self.pipe, inside, strengths, request.combine), self._scheduled(request.scheduler):
                image = self._picture(request.single(index), after_step)
            tell(Drawn(request=request.single(index), image=image))
            if stop.is_set():
                return

    def _picture(self, request: DrawRequest, after_step: Callable[..., dict[str, Any]]) -> Image.Image:
        options: dict[str, Any] = {
            "negative_prompt": request.negative_prompt or None,
            "num_inference_steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "callback_on_step_end": after_step,
        }
        if request.image is None:
            options |= {"height": request.height, "width": request.width}
            return draw(self.pipe, request.prompt, request.seed, **options)
        with Image.open(self.uploads.path(request.image)) as start:
            image = start.convert("RGB").resize((request.width, request.height), Image.Resampling.LANCZOS)
        from diffusers import AutoPipelineForImage2Image  # imports every pipeline there is: only when it is needed

        pipe = AutoPipelineForImage2Image.from_pipe(self.pipe)
        pipe.set_progress_bar_config(disable=True)
        return draw(pipe, request.prompt, request.seed, image=image, strength=request.image_strength, **options)

    @contextmanager
    def _scheduled(self, name: str) -> Iterator[None]:
        self.pipe.scheduler = make_scheduler(name, self._own_scheduler)
        try:
            yield
        finally:
            self.pipe.scheduler = self._own_scheduler

    def _bring_in(self, entries: list[Entry]) -> list[str]:
        """Load what is missing or has changed, and return the names that the adapters have in the pipeline."""
        known = {entry.name: entry.stamp for entry in entries}
        changed = [name for name, stamp in known.items() if self._loaded.get(name, ("", stamp))[1] != stamp]
        self._forget(changed)
        for entry in entries:
            if entry.name in self._loaded:
                self._loaded[entry.name] = self._loaded.pop(entry.name)  # the last to go
                continue
            self._count += 1
            load_hra_weights(self.pipe, entry.folder, f"adapter{self._count}")
            self._loaded[entry.name] = (f"adapter{self._count}", entry.stamp)
        self._forget([name for name in self._loaded if name not in known][: max(0, len(self._loaded) - _KEPT_ADAPTERS)])
        return [self._loaded[entry.name][0] for entry in entries]

    def _forget(self, names: list[str]) -> None:
        for name in names:
            unload_hra_weights(self.pipe, self._loaded.pop(name)[0])
