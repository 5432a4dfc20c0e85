"""before_after.png: the same prompts and seeds without and with the adapter, side by side, labelled."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from hra_diffusion.pipelines import draw, hra_disabled

GAP = 8
LABEL_CHARACTERS = 24


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """Which pictures are drawn: a row for each prompt, and two columns for each seed.

    Pictures are drawn one at a time, so that each is what ``hra-diffusion generate`` draws with its prompt and seed.
    """

    prompts: Sequence[str]
    seeds: Sequence[int]
    resolution: int
    steps: int
    guidance_scale: float
    rows: list[list[Image.Image]] = field(default_factory=list)
    """What has been drawn."""

    @property
    def total(self) -> int:
        """Number of pictures."""
        return 2 * len(self.prompts) * len(self.seeds)

    def draw(self, pipe: Any) -> Iterator[int]:
        """Draw with a pipeline that has an adapter; yields how many pictures are done."""
        self.rows.clear()
        for prompt in self.prompts:
            self.rows.append([])
            for seed in self.seeds:
                for mode in (hra_disabled(pipe), nullcontext()):
                    with mode:
                        self.rows[-1].append(self._picture(pipe, prompt, seed))
                    yield sum(map(len, self.rows))

    def sheet(self) -> Image.Image:
        """Put the pictures on one labelled sheet."""
        columns = [f"{mode} adapter\nseed {seed}" for seed in self.seeds for mode in ("without", "with")]
        return contact_sheet(self.rows, self.prompts, columns)

    def _picture(self, pipe: Any, prompt: str, seed: int) -> Image.Image:
        return draw(
            pipe,
            prompt,
            seed,
            height=self.resolution,
            width=self.resolution,
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
        )


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], row_labels: Sequence[str], column_labels: Sequence[str]
) -> Image.Image:
    """Arrange pictures in a grid on white, a label above each column and to the left of each row.

    Args:
        rows: pictures of one size, each row as long as ``column_labels``.
        row_labels: one a row; long ones are wrapped.
        column_labels: one a column; they may have several lines.
    """
    width, height = rows[0][0].size
    font = ImageFont.load_default(size=max(11, width // 16))
    measure = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    labels = ["\n".join(textwrap.wrap(label, LABEL_CHARACTERS)) for label in row_labels]
    left = round(max(measure.multiline_textbbox((0, 0), label, font)[2] for label in labels)) + 2 * GAP
    top = round(max(measure.multiline_textbbox((0, 0), header, font)[3] for header in column_labels)) + 2 * GAP
    size = (left + len(column_labels) * (width + GAP), top + len(rows) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, header in enumerate(column_labels):
        middle = left + column * (width + GAP) + width / 2
        draw.multiline_text((middle, top / 2), header, "black", font, anchor="mm", align="center")
    for row, (label, pictures) in enumerate(zip(labels, rows, strict=True)):
        y = top + row * (height + GAP)
        draw.multiline_text((GAP, y + height / 2), label, "black", font, anchor="lm")
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (left + column * (width + GAP), y))
    return sheet
