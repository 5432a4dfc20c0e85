"""Validation images of a control: condition, base image, controlled image and, for pairs, the real image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from hra_diffusion.control import Control
from hra_diffusion.formats.contact_sheet import contact_sheet
from hra_diffusion.pipelines import disable_hra, generate_image
from hra_diffusion.pipelines.protocol import Pipeline


@dataclass(frozen=True, kw_only=True)
class ControlValidation:
    """Images of a control: a row for each condition. Methods: see ``validation.Validation``."""

    control: Control
    prompts: Sequence[str]
    conditions: Sequence[Image.Image]
    """Annotations, of the size of the generated images."""
    real: Sequence[Image.Image] = ()
    """Real images of the same size, if any."""
    seed: int
    """Seed of the first image; the next images have the next seeds."""
    options: dict[str, Any]
    """Options of the pipeline's call."""
    rows: list[list[Image.Image]] = field(default_factory=list)
    """Conditions, generated and real images."""

    @property
    def num_comparison_images(self) -> int:
        """Number of generated images in the comparison."""
        return 2 * len(self.prompts)

    def generate_comparison(self, pipe: Pipeline) -> Iterator[int]:
        """Generate images without and with the control; yield the number of images so far."""
        self.rows.clear()
        for index, prompt in enumerate(self.prompts):
            with disable_hra(pipe):
                base = generate_image(pipe, prompt, self.seed + index, **self.options)
            yield 2 * index + 1
            controlled = self._generate(pipe, index)
            self.rows.append([self.conditions[index], base, controlled, *self.real[index : index + 1]])
            yield 2 * index + 2

    def generate_adapted(self, pipe: Pipeline) -> Iterator[tuple[str, int, Image.Image]]:
        """Generate images with the control only; yield each image as (prompt, seed, image)."""
        for index, prompt in enumerate(self.prompts):
            yield prompt, self.seed + index, self._generate(pipe, index)

    def comparison_sheet(self) -> Image.Image:
        """Return the images of :meth:`generate_comparison` on one labeled sheet."""
        columns = ["condition", "base", "controlled", "real"]
        return contact_sheet(self.rows, self.prompts, columns[: len(self.rows[0])])

    def _generate(self, pipe: Pipeline, index: int) -> Image.Image:
        with self.control.guiding(pipe, self.conditions[index], annotated=True):
            return generate_image(pipe, self.prompts[index], self.seed + index, **self.options)
