"""Looking at a control: condition, the base's image, the controlled one and, of pairs, the real one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from hra_diffusion.control import Control
from hra_diffusion.formats.contact_sheet import contact_sheet
from hra_diffusion.pipelines import generate_image, disable_hra


@dataclass(frozen=True, kw_only=True)
class ControlValidation:
    """What is drawn: a row for each condition."""

    control: Control
    prompts: Sequence[str]
    conditions: Sequence[Image.Image]
    """Annotated already, of the size that is drawn."""
    real: Sequence[Image.Image] = ()
    """Of the same size, where there are any."""
    seed: int
    """Of the first; the others have the next ones."""
    options: dict[str, Any]
    """What the pipeline is told."""
    rows: list[list[Image.Image]] = field(default_factory=list)
    """What has been drawn."""

    @property
    def total(self) -> int:
        """Number of images."""
        return 2 * len(self.prompts)

    def draw(self, pipe: Any) -> Iterator[int]:
        """Draw with a pipeline that has the control's adapter; yields how many images are done."""
        self.rows.clear()
        for at, prompt in enumerate(self.prompts):
            with disable_hra(pipe):
                base = generate_image(pipe, prompt, self.seed + at, **self.options)
            yield 2 * at + 1
            self.rows.append([self.conditions[at], base, self._controlled(pipe, at), *self.real[at : at + 1]])
            yield 2 * at + 2

    def draw_adapted(self, pipe: Any) -> Iterator[tuple[str, int, Image.Image]]:
        """Draw with the control alone; yields each image with its prompt and seed."""
        for at, prompt in enumerate(self.prompts):
            yield prompt, self.seed + at, self._controlled(pipe, at)

    def sheet(self) -> Image.Image:
        """Put the images on one labeled sheet."""
        columns = ["condition", "base", "controlled", "real"]
        return contact_sheet(self.rows, self.prompts, columns[: len(self.rows[0])])

    def _controlled(self, pipe: Any, at: int) -> Image.Image:
        with self.control.guiding(pipe, self.conditions[at], annotated=True):
            return generate_image(pipe, self.prompts[at], self.seed + at, **self.options)
