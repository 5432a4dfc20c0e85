"""Looking at an adapter: its images of some prompts and seeds, alone or beside those without it (before_after.png).

Drawing changes nothing: each image has a generator of its own, and no module or random state is touched.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from hra_diffusion.errors import ConfigError
from hra_diffusion.formats.contact_sheet import contact_sheet
from hra_diffusion.pipelines import generate_image, disable_hra
from hra_diffusion.training.config import SubjectValidationConfig
from hra_diffusion.training.data.subjects import Subject


class Preview(Protocol):
    """Images that show what was learned."""

    @property
    def total(self) -> int:
        """Number of images."""
        ...

    def draw(self, pipe: Any) -> Iterator[int]:
        """Draw with a pipeline that has an adapter, as it is and with it; yields how many images are done."""
        ...

    def draw_adapted(self, pipe: Any) -> Iterator[tuple[str, int, Image.Image]]:
        """Draw with the adapter alone; yields each image with its prompt and seed."""
        ...

    def sheet(self) -> Image.Image:
        """Put the images on one labeled sheet."""
        ...


@dataclass(frozen=True, kw_only=True)
class SubjectValidation:
    """Which images are drawn: a row for each prompt, and two columns for each seed.

    Images are drawn one at a time, so that each is what ``hra-diffusion generate`` draws with its prompt and seed.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    options: dict[str, Any]
    """What the pipeline is told."""
    rows: list[list[Image.Image]] = field(default_factory=list)
    """What has been drawn."""

    @property
    def total(self) -> int:
        """Number of images."""
        return 2 * len(self.prompts) * len(self.seeds)

    def draw(self, pipe: Any) -> Iterator[int]:
        """Draw with a pipeline that has an adapter; yields how many images are done."""
        self.rows.clear()
        for prompt in self.prompts:
            self.rows.append([])
            for seed in self.seeds:
                for mode in (disable_hra(pipe), nullcontext()):
                    with mode:
                        self.rows[-1].append(self._image(pipe, prompt, seed))
                    yield sum(map(len, self.rows))

    def draw_adapted(self, pipe: Any) -> Iterator[tuple[str, int, Image.Image]]:
        """Draw with the adapter alone; yields each image with its prompt and seed."""
        for prompt in self.prompts:
            for seed in self.seeds:
                yield prompt, seed, self._image(pipe, prompt, seed)

    def sheet(self) -> Image.Image:
        """Put the images on one labeled sheet."""
        columns = [f"{mode} adapter\nseed {seed}" for seed in self.seeds for mode in ("without", "with")]
        return contact_sheet(self.rows, self.prompts, columns)

    def _image(self, pipe: Any, prompt: str, seed: int) -> Image.Image:
        return generate_image(pipe, prompt, seed, **self.options)


def subject_validation(subjects: Sequence[Subject], validation: SubjectValidationConfig, resolution: int, seed: int) -> SubjectValidation:
    """Fill the prompts of the subjects into the settings' rows; a row of a class goes where there is none.

    Raises:
        ConfigError: a row has another word in braces.
    """
    for template in validation.validation_prompts:
        if unknown := set(re.findall(r"\{(\w*)\}", template)) - {"instance_prompt", "class_prompt"}:
            raise ConfigError(
                f"--validation_prompts has {template!r}, but {{{sorted(unknown)[0]}}} stands for nothing: "
                "{instance_prompt} and {class_prompt} do."
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
