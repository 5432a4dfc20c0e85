"""Validation images: generated with an adapter, alone or beside the base model's images (before_after.png).

Generating them does not affect training: each image has its own random generator.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.contact_sheet import contact_sheet
from hra_diffusion.pipelines import disable_hra, generate_image
from hra_diffusion.pipelines.protocol import Pipeline
from hra_diffusion.training.config import SubjectValidationConfig
from hra_diffusion.training.data.subjects import Subject


class Validation(Protocol):
    """Images to judge an adapter by."""

    @property
    def num_comparison_images(self) -> int:
        """Number of generated images in the comparison."""
        ...

    def generate_comparison(self, pipe: Pipeline) -> Iterator[int]:
        """Generate images without and with the adapter of a pipeline; yield the number of images so far."""
        ...

    def generate_adapted(self, pipe: Pipeline) -> Iterator[tuple[str, int, Image.Image]]:
        """Generate images with the adapter only; yield each image as (prompt, seed, image)."""
        ...

    def comparison_sheet(self) -> Image.Image:
        """Return the images of :meth:`generate_comparison` on one labeled sheet."""
        ...


@dataclass(frozen=True, kw_only=True)
class SubjectValidation:
    """Images of subjects: a row for each prompt, and two columns for each seed.

    Images are generated one at a time, so that ``hra-diffusion generate`` gives the same image for a prompt and seed.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    options: dict[str, Any]
    """Options of the pipeline's call."""
    rows: list[list[Image.Image]] = field(default_factory=list)
    """The generated images."""

    @property
    def num_comparison_images(self) -> int:
        """See :class:`Validation`."""
        return 2 * len(self.prompts) * len(self.seeds)

    def generate_comparison(self, pipe: Pipeline) -> Iterator[int]:
        """See :class:`Validation`."""
        self.rows.clear()
        for prompt in self.prompts:
            self.rows.append([])
            for seed in self.seeds:
                for mode in (disable_hra(pipe), nullcontext()):
                    with mode:
                        self.rows[-1].append(self._generate(pipe, prompt, seed))
                    yield sum(map(len, self.rows))

    def generate_adapted(self, pipe: Pipeline) -> Iterator[tuple[str, int, Image.Image]]:
        """See :class:`Validation`."""
        for prompt in self.prompts:
            for seed in self.seeds:
                yield prompt, seed, self._generate(pipe, prompt, seed)

    def comparison_sheet(self) -> Image.Image:
        """See :class:`Validation`."""
        columns = [f"{mode} adapter\nseed {seed}" for seed in self.seeds for mode in ("without", "with")]
        return contact_sheet(self.rows, self.prompts, columns)

    def _generate(self, pipe: Pipeline, prompt: str, seed: int) -> Image.Image:
        return generate_image(pipe, prompt, seed, **self.options)


def subject_validation(
    subjects: Sequence[Subject], validation: SubjectValidationConfig, resolution: int, seed: int
) -> SubjectValidation:
    """Fill the subjects' prompts into --validation_prompts, without class prompts of subjects that have none.

    Raises:
        ConfigError: a prompt has an unknown word in braces.
    """
    for template in validation.validation_prompts:
        if unknown := set(re.findall(r"\{(\w*)\}", template)) - {"instance_prompt", "class_prompt"}:
            raise ConfigError(
                f"--validation_prompts has {template!r}, and {{{sorted(unknown)[0]}}} is unknown: use "
                "{instance_prompt} or {class_prompt}."
            )
    prompts = [
        template.replace("{instance_prompt}", subject.prompt).replace("{class_prompt}", subject.class_prompt or "")
        for template in validation.validation_prompts
        for subject in subjects
        if subject.class_prompt or "{class_prompt}" not in template
    ]
    return SubjectValidation(
        prompts=list(dict.fromkeys(prompts)),
        seeds=range(seed, seed + validation.num_validation_images),
        options=validation.options(resolution),
    )
