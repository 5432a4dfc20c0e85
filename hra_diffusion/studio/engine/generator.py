"""A pipeline and the adapters that are in it. It draws on one thread, `Model`'s, which alone has it.

To import this is to import diffusers, and to make it is to read the weights: seconds, which the page does not wait for.
"""

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from PIL import Image

from hra_diffusion.control import Control, load_hra_control
from hra_diffusion.pipelines import (
    generate_image,
    load_hra_weights,
    load_pipeline,
    unload_hra_weights,
    using_hra_adapters,
)
from hra_diffusion.studio.engine.events import Drawn, Event, Progress
from hra_diffusion.studio.engine.library import Entry, Library
from hra_diffusion.studio.engine.preview import Preview
from hra_diffusion.studio.engine.requests import GenerateRequest
from hra_diffusion.studio.engine.schedulers import make_scheduler
from hra_diffusion.studio.engine.uploads import Uploads

_KEPT_ADAPTERS = 12
"""Adapters that stay in the model between requests."""
_READ_CHARACTERS = 20_000
"""No model reads as many."""


class _StopGeneration(Exception):  # noqa: N818 - it is no error
    """Leaves a pipeline between two steps."""


class Generator:
    """Draws requests.

    Args:
        source: the model's folder, its file, or its name on the hub.
        library: where adapters come from.
        uploads: where images to start from are.
        device: where it draws.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(self, source: str, library: Library, uploads: Uploads, device: Any) -> None:
        self.pipe = load_pipeline(source).to(device)
        self._library, self._uploads = library, uploads
        self._preview = Preview(self.pipe.vae)
        # A tokenizer keeps the truncation it was last asked for: a shared one would cut what is being drawn otherwise.
        self._tokenizer, self._one_reader = copy.deepcopy(self.pipe.tokenizer), threading.Lock()
        self._own_scheduler = self.pipe.scheduler
        self._loaded: dict[str, tuple[str, int]] = {}
        self._controls: dict[str, Control] = {}
        self._count = 0

    def draw(self, request: GenerateRequest, stop: threading.Event, tell: Callable[[Event], None]) -> None:
        """Draw, telling of every step and image; ends early, without an error, when ``stop`` is set.

        Raises:
            HRAError: it cannot be drawn.
        """
        names = self._bring_in([self._library.entry(use.name) for use in request.adapters])
        acting = dict(zip(names, (use.strength for use in request.adapters), strict=True))
        controls = [(self._controls[name], acting.pop(name)) for name in names if name in self._controls]
        start, done = time.monotonic(), 0

        def after_step(pipe: Any, step: int, timestep: Any, told: dict[str, Any]) -> dict[str, Any]:
            nonlocal done
            if stop.is_set():
                raise _StopGeneration
            done, steps = done + 1, pipe.num_timesteps
            tell(
                Progress(
                    image=(done - 1) // steps,
                    images=request.count,
                    step=step + 1,
                    steps=steps,
                    seconds_left=(time.monotonic() - start) / done * (steps * request.count - done),
                    preview=self._preview(told["latents"]),
                )
            )
            return {}

        for index in range(request.count):
            if stop.is_set():
                return
            one = request.single(index)
            with (
                using_hra_adapters(self.pipe, list(acting), list(acting.values()), request.combine),
                self._scheduled(request.scheduler),
            ):
                try:
                    image = self._image(one, controls, after_step)
                except _StopGeneration:
                    return
            tell(Drawn(request=one, image=image))

    def alone(self) -> Any:
        """Return the pipeline without adapters in it."""
        self._forget(list(self._loaded))
        return self.pipe

    def left_out(self, prompt: str) -> str:
        """Return the end of a prompt that the model does not read; any thread may ask."""
        tokenizer = self._tokenizer
        start, end = prompt[:_READ_CHARACTERS], prompt[_READ_CHARACTERS:]
        with self._one_reader:
            ids = tokenizer(start, truncation=True, max_length=tokenizer.model_max_length).input_ids
            whole = tokenizer(start, truncation=False, verbose=False).input_ids
        if len(whole) <= len(ids):
            return end
        unread = tokenizer.decode(whole[len(ids) - 1 : -1], skip_special_tokens=True)
        return unread.replace("</w>", " ").strip() + end

    def _image(
        self, request: GenerateRequest, controls: list[tuple[Control, float]], after_step: Callable[..., dict[str, Any]]
    ) -> Image.Image:
        pipe, options = self.pipe, {"height": request.height, "width": request.width}
        if request.image:
            from diffusers import AutoPipelineForImage2Image  # imports every pipeline there is: only when it is needed

            pipe = AutoPipelineForImage2Image.from_pipe(self.pipe)
            pipe.set_progress_bar_config(disable=True)
            image = self._uploads.read(request.image).convert("RGB")
            image = image.resize((request.width, request.height), Image.Resampling.LANCZOS)
            options = {"image": image, "strength": request.image_strength}
        with self._following(pipe, request, controls):
            return generate_image(
                pipe,
                request.prompt,
                request.seed,
                negative_prompt=request.negative_prompt or None,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance_scale,
                callback_on_step_end=after_step,
                **options,
            )

    @contextmanager
    def _following(self, pipe: Any, request: GenerateRequest, controls: list[tuple[Control, float]]) -> Iterator[None]:
        """Let the control, if one was chosen, act."""
        with ExitStack() as acting:
            for control, strength in controls:
                guiding = control.guiding(
                    pipe,
                    self._uploads.read(request.condition or ""),
                    strength=strength,
                    start=request.control_start,
                    end=request.control_end,
                    annotated=True,
                    combine=request.combine,
                )
                acting.enter_context(guiding)
            yield

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
            inside = f"adapter{self._count}"
            if entry.annotator:
                self._controls[inside] = load_hra_control(self.pipe, entry.folder, inside)
            else:
                load_hra_weights(self.pipe, entry.folder, inside)
            self._loaded[entry.name] = (inside, entry.stamp)
        self._forget([name for name in self._loaded if name not in known][: max(0, len(self._loaded) - _KEPT_ADAPTERS)])
        return [self._loaded[entry.name][0] for entry in entries]

    def _forget(self, names: list[str]) -> None:
        for name in names:
            inside, _ = self._loaded.pop(name)
            unload_hra_weights(self.pipe, inside)
            self._controls.pop(inside, None)
