"""A pipeline with its loaded adapters and controls; the thread of `ModelWorker` alone uses it.

Importing this module imports diffusers, and creating a generator loads the weights: the page waits for neither.
"""

import inspect
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from PIL import Image

from hra_diffusion.control import Control, load_hra_control
from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.folders import public_name
from hra_diffusion.pipelines import (
    RecordedBase,
    generate_image,
    load_base,
    load_hra_weights,
    prompt_options,
    unload_hra_weights,
    using_hra_adapters,
)
from hra_diffusion.pipelines.clip_skip import check_clip_skip, default_clip_skip, set_clip_skip
from hra_diffusion.pipelines.components import text_encoders, tokenizer_of
from hra_diffusion.pipelines.prompt_weights import MAX_CHARACTERS, PromptSyntax, parse_weights
from hra_diffusion.pipelines.prompts import reads_weights
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.studio.engine.bound_adapters import with_named_adapters
from hra_diffusion.studio.engine.events import Event, Generated, Progress
from hra_diffusion.studio.engine.library import Entry, Library
from hra_diffusion.studio.engine.preview import Preview
from hra_diffusion.studio.engine.prompt_length import PromptLength, PromptMeter
from hra_diffusion.studio.engine.requests import GenerateRequest
from hra_diffusion.studio.engine.schedulers import make_scheduler
from hra_diffusion.studio.engine.uploads import Uploads

_MAX_LOADED = 12
"""Adapters that stay loaded between requests."""

_AfterStep = Callable[[Pipeline, int, Any, dict[str, Any]], dict[str, Any]]


class _StopGeneration(Exception):  # noqa: N818 - no error
    """Ends a pipeline call between two steps."""


class Generator:
    """Generates the images of requests.

    Args:
        base: the model.
        library: the available adapters.
        uploads: initial images and conditions.
        placement: options of `pipelines.load_base`: dtype, offload, vae_tiling, vae_slicing.

    Raises:
        ConfigError: the placement is impossible.
        ModelError: the model cannot be loaded.
    """

    def __init__(
        self, base: RecordedBase, library: Library, uploads: Uploads, placement: Mapping[str, Any] | None = None
    ) -> None:
        self.pipe = load_base(base, **(placement or {}))
        self._library, self._uploads, self._base = library, uploads, public_name(base.name or "")
        self._preview = Preview(self.pipe.vae, self.pipe._execution_device)
        self._meter = PromptMeter(_longest_tokenizer(self.pipe))
        self._default_scheduler = self.pipe.scheduler
        self._loaded: dict[str, tuple[str, int]] = {}
        self._controls: dict[str, Control] = {}
        self._count = 0

    def __call__(self, request: GenerateRequest, stop: threading.Event, emit: Callable[[Event], None]) -> None:
        """Generate images, emitting an event for every step and image; end early, without an error, on ``stop``.

        Raises:
            HRAError: the request cannot be generated.
        """
        request = with_named_adapters(request, self._library, self._base)
        names = self._load([self._library.entry(use.name) for use in request.adapters])
        strengths = dict(zip(names, (use.strength for use in request.adapters), strict=True))
        controls = [(self._controls[name], strengths.pop(name)) for name in names if name in self._controls]
        start, done = time.monotonic(), 0

        def after_step(pipe: Pipeline, step: int, _: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            nonlocal done
            if stop.is_set():
                raise _StopGeneration
            done, steps = done + 1, pipe.num_timesteps
            emit(
                Progress(
                    image=(done - 1) // steps,
                    images=request.count,
                    step=step + 1,
                    steps=steps,
                    seconds_left=(time.monotonic() - start) / done * (steps * request.count - done),
                    preview=self._preview(tensors["latents"], request.height / request.width),
                )
            )
            return {}

        for index in range(request.count):
            if stop.is_set():
                return
            single = request.single(index)
            with (
                using_hra_adapters(self.pipe, list(strengths), list(strengths.values()), request.combine),
                self._scheduled(request.scheduler),
            ):
                try:
                    image = self._generate_image(single, controls, after_step)
                except _StopGeneration:
                    return
            emit(Generated(request=single, image=image))

    def base_pipeline(self) -> Pipeline:
        """Unload all adapters and return the pipeline."""
        self._unload(list(self._loaded))
        return self.pipe

    def truncated_text(self, prompt: str, syntax: PromptSyntax = "plain") -> str:
        """Return the end of a prompt that is ignored, as typed; any thread may call."""
        return self.prompt_length(prompt, syntax).ignored

    def prompt_length(self, prompt: str, syntax: PromptSyntax = "plain") -> PromptLength:
        """Return the length of a prompt in tokens, and its ignored end; any thread may call.

        Prompts with weights have no limit but `MAX_CHARACTERS`; the limit is that of one part.
        """
        if syntax == "a1111" and reads_weights(self.pipe):
            plain = "".join(fragment.text for fragment in parse_weights(prompt[:MAX_CHARACTERS]))
            return replace(self._meter.measure(plain), ignored=prompt[MAX_CHARACTERS:])
        return self._meter.measure(prompt)

    def _generate_image(
        self, request: GenerateRequest, controls: list[tuple[Control, float]], after_step: _AfterStep
    ) -> Image.Image:
        pipe: Any = self.pipe
        options: dict[str, Any] = {"height": request.height, "width": request.width}
        if request.image:
            pipe = _image_to_image(self.pipe)
            pipe.set_progress_bar_config(disable=True)
            set_clip_skip(pipe, default_clip_skip(self.pipe))
            image = self._uploads.open(request.image).convert("RGB")
            image = image.resize((request.width, request.height), Image.Resampling.LANCZOS)
            takes_size = "height" in inspect.signature(type(pipe).__call__).parameters
            options = {"image": image, "strength": request.image_strength} | (options if takes_size else {})
        clip_skip = default_clip_skip(self.pipe) if request.clip_skip is None else request.clip_skip
        if clip_skip is not None:
            check_clip_skip(self.pipe, clip_skip)
            options["clip_skip"] = clip_skip
        with self._controlled(pipe, request, controls):
            options |= prompt_options(
                self.pipe,
                request.prompt,
                request.negative_prompt or None,
                syntax=request.prompt_syntax,
                clip_skip=clip_skip,
            )
            return generate_image(
                pipe,
                seed=request.seed,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance_scale,
                callback_on_step_end=after_step,
                **options,
            )

    @contextmanager
    def _controlled(
        self, pipe: Pipeline, request: GenerateRequest, controls: list[tuple[Control, float]]
    ) -> Iterator[None]:
        """Apply the chosen control, if any, within a ``with`` block."""
        with ExitStack() as active:
            for control, strength in controls:
                guiding = control.guiding(
                    pipe,
                    self._uploads.open(request.condition or ""),
                    strength=strength,
                    start=request.control_start,
                    end=request.control_end,
                    annotated=True,
                    combine=request.combine,
                )
                active.enter_context(guiding)
            yield

    @contextmanager
    def _scheduled(self, name: str) -> Iterator[None]:
        self.pipe.scheduler = make_scheduler(name, self._default_scheduler)
        try:
            yield
        finally:
            self.pipe.scheduler = self._default_scheduler

    def _load(self, entries: list[Entry]) -> list[str]:
        """Load missing and changed adapters; return the names of the adapters in the pipeline."""
        stamps = {entry.name: entry.stamp for entry in entries}
        changed = [name for name, stamp in stamps.items() if self._loaded.get(name, ("", stamp))[1] != stamp]
        self._unload(changed)
        for entry in entries:
            if entry.name in self._loaded:
                self._loaded[entry.name] = self._loaded.pop(entry.name)  # most recently used: unloaded last
                continue
            self._count += 1
            adapter_name = f"adapter{self._count}"
            if entry.annotator:
                self._controls[adapter_name] = load_hra_control(self.pipe, entry.folder, adapter_name)
            else:
                load_hra_weights(self.pipe, entry.folder, adapter_name)
            self._loaded[entry.name] = (adapter_name, entry.stamp)
        unused = [name for name in self._loaded if name not in stamps]
        self._unload(unused[: max(0, len(self._loaded) - _MAX_LOADED)])
        return [self._loaded[entry.name][0] for entry in entries]

    def _unload(self, names: list[str]) -> None:
        for name in names:
            adapter_name, _ = self._loaded.pop(name)
            unload_hra_weights(self.pipe, adapter_name)
            self._controls.pop(adapter_name, None)


def _image_to_image(pipe: Pipeline) -> Any:
    """Return the pipeline that starts from an image, with the same components.

    Raises:
        ConfigError: diffusers has none for this kind of pipeline.
    """
    import diffusers  # the page needs none of its pipelines

    name = type(pipe).__name__.replace("Pipeline", "Img2ImgPipeline")
    if not hasattr(diffusers, name):
        raise ConfigError(f"A {type(pipe).__name__} cannot start from an image: remove the initial image.")
    try:
        return diffusers.AutoPipelineForImage2Image.from_pipe(pipe)
    except ValueError:  # it has no Chroma
        return getattr(diffusers, name)(**pipe.components)


def _longest_tokenizer(pipe: Pipeline) -> Any:
    """Return the tokenizer of the text encoder that reads the longest prompts; of several, the first."""
    return max(
        (tokenizer_of(pipe, name) for name in text_encoders(pipe)), key=lambda tokenizer: tokenizer.model_max_length
    )
