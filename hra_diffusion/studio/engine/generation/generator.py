"""A pipeline with its loaded adapters and controls; the thread of `ModelWorker` alone uses it.

Importing this module imports diffusers, and creating a generator loads the weights: the page waits for neither.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from PIL import Image

from hra_diffusion.control import Control, load_hra_control
from hra_diffusion.errors import ConfigError, HRAError
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
from hra_diffusion.pipelines.clip_skip import check_clip_skip, default_clip_skip
from hra_diffusion.pipelines.components import text_encoders, tokenizer_of
from hra_diffusion.pipelines.image_to_image import ImageToImage, has_image_to_image
from hra_diffusion.pipelines.kinds import size_multiple
from hra_diffusion.pipelines.prompt_weights import MAX_CHARACTERS, PromptSyntax, parse_weights
from hra_diffusion.pipelines.prompts import reads_weights
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.studio.engine.adapters.entry import Entry
from hra_diffusion.studio.engine.adapters.library import Library
from hra_diffusion.studio.engine.generation.bound_adapters import with_named_adapters
from hra_diffusion.studio.engine.generation.events import Event, Generated
from hra_diffusion.studio.engine.generation.preview import Preview
from hra_diffusion.studio.engine.generation.prompt_length import PromptLength, PromptMeter
from hra_diffusion.studio.engine.generation.requests import GenerateRequest
from hra_diffusion.studio.engine.generation.schedulers import make_scheduler
from hra_diffusion.studio.engine.generation.step_progress import StepProgress, StopGeneration
from hra_diffusion.studio.engine.setting_error import SettingError
from hra_diffusion.studio.engine.uploads import Uploads

_MAX_LOADED = 12
"""Adapters that stay loaded between requests."""


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
        after_step = StepProgress(request, self._preview, stop, emit)
        for index in range(request.count):
            if stop.is_set():
                return
            single = request.single(index)
            after_step.image = index
            with (
                using_hra_adapters(self.pipe, list(strengths), list(strengths.values()), request.combine),
                self._scheduled(request.scheduler),
            ):
                try:
                    image = self._generate_passes(single, controls, after_step)
                except StopGeneration:
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

    def _generate_passes(
        self, request: GenerateRequest, controls: list[tuple[Control, float]], after_step: StepProgress
    ) -> Image.Image:
        """Generate an image, and refine it in a second pass at a larger size if the request has one."""
        if request.hires_scale > 1 and not has_image_to_image(self.pipe):
            raise SettingError(
                "hires_scale", f"needs image to image, which a {type(self.pipe).__name__} does not have: give 1."
            )
        after_step.refines = False
        start = self._start_from_image(request) if request.image else None
        image = self._generate_image(request, start, controls, after_step)
        if request.hires_scale == 1:
            return image
        multiple = size_multiple(self.pipe)
        width, height = (round(side * request.hires_scale / multiple) * multiple for side in image.size)
        start = ImageToImage(self.pipe, image.resize((width, height), Image.Resampling.LANCZOS), request.hires_strength)
        after_step.refines = True
        second = replace(request, steps=request.hires_steps or request.steps, hires_scale=1.0)
        return self._generate_image(second, start, controls, after_step)

    def _generate_image(
        self,
        request: GenerateRequest,
        start: ImageToImage | None,
        controls: list[tuple[Control, float]],
        after_step: StepProgress,
    ) -> Image.Image:
        pipe, generate = (start.pipe, start.generate) if start else (self.pipe, partial(generate_image, self.pipe))
        options: dict[str, Any] = {} if start else {"height": request.height, "width": request.width}
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
            return generate(
                seed=request.seed,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance_scale,
                callback_on_step_end=after_step,
                **options,
            )

    def _start_from_image(self, request: GenerateRequest) -> ImageToImage:
        """Return the pipeline for a request's start image, and for its mask if it has one."""
        size = (request.width, request.height)
        image = self._uploads.open(request.image or "").convert("RGB").resize(size, Image.Resampling.LANCZOS)
        mask = self._uploads.open(request.mask) if request.mask else None
        return ImageToImage(self.pipe, image, request.image_strength, mask, request.mask_blur)

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
            try:
                if entry.annotator:
                    self._controls[adapter_name] = load_hra_control(self.pipe, entry.folder, adapter_name)
                else:
                    load_hra_weights(self.pipe, entry.folder, adapter_name)
            except HRAError as error:
                if entry.base in (None, self._base):
                    raise
                raise ConfigError(
                    f"{entry.name!r} is an adapter of {entry.base}, and does not fit {self._base}: {error}"
                ) from error
            self._loaded[entry.name] = (adapter_name, entry.stamp)
        unused = [name for name in self._loaded if name not in stamps]
        self._unload(unused[: max(0, len(self._loaded) - _MAX_LOADED)])
        return [self._loaded[entry.name][0] for entry in entries]

    def _unload(self, names: list[str]) -> None:
        for name in names:
            adapter_name, _ = self._loaded.pop(name)
            unload_hra_weights(self.pipe, adapter_name)
            self._controls.pop(adapter_name, None)


def _longest_tokenizer(pipe: Pipeline) -> Any:
    """Return the tokenizer of the text encoder that reads the longest prompts; of several, the first."""
    return max(
        (tokenizer_of(pipe, name) for name in text_encoders(pipe)), key=lambda tokenizer: tokenizer.model_max_length
    )
