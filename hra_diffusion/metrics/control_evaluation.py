"""Does a model follow its condition? The same prompts and seeds with the right condition, another's, and none.

A model that ignores its condition agrees with the wrong ones as well as with the right ones; agreement is therefore
always measured three times, in the modes ``controlled``, ``shuffled`` and ``base``, and of real images.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hra_diffusion.control import Control
from hra_diffusion.control.annotators import Canny, Landmarks, Scribble, Segmentation, SoftEdge
from hra_diffusion.formats.files import write_together
from hra_diffusion.formats.run_folder import METRICS, TABLE
from hra_diffusion.metrics.agreement import (
    depth_agreement,
    edge_agreement,
    label_agreement,
    landmark_agreement,
    object_mask,
)
from hra_diffusion.metrics.bootstrap import Estimate, bootstrap
from hra_diffusion.metrics.encoders import Encoder
from hra_diffusion.metrics.frechet import Inception, frechet_distance
from hra_diffusion.metrics.instruments import Instruments
from hra_diffusion.metrics.report import markdown_table
from hra_diffusion.metrics.scores import paired
from hra_diffusion.metrics.vocabulary import classify

MODES = {
    "controlled": "controlled",
    "shuffled": "with another's condition",
    "base": "without",
    "real": "real images",
}
"""Columns of the table."""

EDGE_TOLERANCE = 1


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Pairs to measure on, none of which was trained on."""

    prompts: Sequence[str]
    real: Sequence[Image.Image]
    """Of the size that is drawn."""
    conditions: Sequence[Image.Image]
    """Annotated already."""
    masks: Sequence[Image.Image] = ()
    """White where the thing in the middle is, where that is known."""
    objects: Sequence[str] = ()
    """What the judge should see, where that is known."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the pipeline is told: size, steps, guidance."""
    batch_size: int = 8
    images: dict[str, list[Image.Image]] = field(default_factory=dict)
    """What has been drawn, by mode."""

    @property
    def total(self) -> int:
        """Number of images in all modes."""
        return len(self._modes) * len(self.prompts)

    @property
    def _modes(self) -> dict[str, Sequence[Image.Image] | None]:
        """What is followed in each mode; a single pair has no other's condition."""
        shifted = {"shuffled": [*self.conditions[1:], self.conditions[0]]} if len(self.conditions) > 1 else {}
        return {"controlled": self.conditions, **shifted, "base": None}

    def draw(self, pipe: Any, control: Control) -> Iterator[int]:
        """Draw everything, pair i with seed i; yields how many images are done."""
        self.images.clear()
        for mode, conditions in self._modes.items():
            drawn = self.images.setdefault(mode, [])
            for start in range(0, len(self.prompts), self.batch_size):
                few = slice(start, start + self.batch_size)
                prompts = list(self.prompts[few])
                generators = [torch.Generator().manual_seed(start + at) for at in range(len(prompts))]
                guided = conditions and control.guiding(pipe, conditions[few], annotated=True)
                with guided or nullcontext():
                    drawn += pipe(prompts, generator=generators, **self.options).images
                yield sum(map(len, self.images.values()))

    def measure(
        self, annotator: Any, instruments: Instruments | None = None, inception: Inception | None = None
    ) -> dict[str, dict[str, Estimate]]:
        """Measure what was drawn against the right conditions: rows of the table, by mode."""
        rows: dict[str, dict[str, Estimate]] = {}
        for mode, drawn in {**self.images, "real": list(self.real)}.items():
            measured = self._measures(annotator, drawn, instruments)
            if inception and len(drawn) > 1:
                measured[f"FID of {len(drawn)} images"] = self._distance(inception, drawn)
            for name, estimate in measured.items():
                rows.setdefault(name, {})[mode] = estimate
        return rows

    def _distance(self, encoder: Encoder | Inception, drawn: list[Image.Image]) -> Estimate:
        """From the real images, as a whole: without an interval, since resampled sets are further from each other."""
        value = frechet_distance(encoder.images(self.real), encoder.images(drawn))
        return Estimate(value=value, low=None, high=None, units=len(drawn))

    def _measures(
        self, annotator: Any, drawn: list[Image.Image], instruments: Instruments | None
    ) -> dict[str, Estimate]:
        measured = condition_agreement(annotator, self.real, self.conditions, drawn)
        if self.masks:
            wanted = [(np.asarray(mask.convert("L")) > 127).astype(np.int64) for mask in self.masks]
            found = [object_mask(np.asarray(image.convert("RGB"))) for image in drawn]
            agreement = label_agreement(wanted, found)
            measured |= {f"object and background, {name}": each for name, each in agreement.items()}
        if instruments:
            vectors = instruments.clip.images(drawn)
            told = instruments.clip.texts(list(self.prompts))
            measured[f"prompt fidelity, CLIP-T ({instruments.clip.name})"] = bootstrap(paired(vectors, told))
            if len(drawn) > 1:
                measured[f"Fréchet distance ({instruments.clip.name})"] = self._distance(instruments.clip, drawn)
            captions = instruments.vocabulary.attributes.get("object") if instruments.vocabulary else None
            if captions and self.objects:
                seen = classify(instruments.clip, vectors, captions)
                right = [float(one == other) for one, other in zip(seen, self.objects, strict=True)]
                measured[f"object accuracy ({instruments.clip.name})"] = bootstrap(right)
        return measured


def condition_agreement(
    annotator: Any, real: Sequence[Image.Image], wanted: Sequence[Image.Image], drawn: Sequence[Image.Image]
) -> dict[str, Estimate]:
    """Annotate what was drawn and compare; by what the annotator's conditions are.

    Args:
        annotator: the control's.
        real: images that the conditions come from, for landmarks.
        wanted: the conditions.
        drawn: the images.
    """
    if isinstance(annotator, Landmarks):
        points = [(annotator.points(one), annotator.points(other)) for one, other in zip(real, drawn, strict=True)]
        known = [(one, other) for one, other in points if one is not None]
        return landmark_agreement([one for one, _ in known], [other for _, other in known]) if known else {}
    if not annotator.reads_any_image:
        return {}  # what is drawn has no transparency, for example: see masks
    maps = [[np.asarray(one.convert("RGB")) for one in wanted], [np.asarray(annotator(each)) for each in drawn]]
    if isinstance(annotator, Segmentation):
        found = [annotator.label_map(each) for each in drawn]
        return label_agreement([annotator.label_map(each) for each in real], found)
    if isinstance(annotator, Canny | Scribble | SoftEdge):
        edges = [[each[..., 0] for each in side] for side in maps]
        return {
            f"{annotator.name} {name}, within {tolerance} px": estimate
            for tolerance in (0, EDGE_TOLERANCE)
            for name, estimate in edge_agreement(edges[0], edges[1], tolerance).items()
        }
    return {f"{annotator.name}, RMSE": depth_agreement(*([each / 255 for each in side] for side in maps))}


def write_report(folder: Path, rows: Mapping[str, Mapping[str, Estimate]], about: Mapping[str, Any]) -> str:
    """Write metrics.json and metrics.md, both or none; returns the Markdown.

    Raises:
        OutputError: the folder cannot be written.
    """
    method = f"In brackets 95 % bootstrap intervals. {about['pairs']} pairs, pair i drawn with seed i."
    text = f"{method}\n\n{markdown_table(rows, MODES)}\n"
    record = {**about, "measures": {row: {mode: asdict(e) for mode, e in cells.items()} for row, cells in rows.items()}}
    write_together(
        {
            folder / METRICS: (json.dumps(record, indent=1) + "\n").encode(),
            folder / TABLE: text.encode(),
        }
    )
    return text
