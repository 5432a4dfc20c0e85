"""Metrics of a control: agreement of images with their condition, with a wrong condition and without.

A model without control agrees equally with right and wrong conditions. Agreement is therefore measured in the modes
``controlled``, ``shuffled`` and ``base``, with the same prompts and seeds, and of real images.
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

from hra_diffusion.control import Annotator, Control
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
from hra_diffusion.metrics.models import MetricModels
from hra_diffusion.metrics.report import markdown_table
from hra_diffusion.metrics.scores import similarity
from hra_diffusion.metrics.vocabulary import classify
from hra_diffusion.pipelines.kinds import call_options
from hra_diffusion.pipelines.models import images_of
from hra_diffusion.pipelines.protocol import Pipeline

MODES = {
    "controlled": "controlled",
    "shuffled": "shuffled conditions",
    "base": "without",
    "real": "real images",
}
"""Columns of the table, by mode."""

EDGE_TOLERANCE = 1


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Held-out pairs and the images generated from them."""

    prompts: Sequence[str]
    real: Sequence[Image.Image]
    """The pairs' images, of the generated size."""
    conditions: Sequence[Image.Image]
    """The pairs' conditions, of the generated size."""
    masks: Sequence[Image.Image] = ()
    """Masks of the central object, white, if known."""
    objects: Sequence[str] = ()
    """The judge's labels of the objects, if known."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the pipeline: size, steps, guidance."""
    batch_size: int = 8
    images: dict[str, list[Image.Image]] = field(default_factory=dict)
    """Generated images by mode."""

    @property
    def num_images(self) -> int:
        """Number of generated images in all modes."""
        return len(self._modes) * len(self.prompts)

    @property
    def _modes(self) -> dict[str, Sequence[Image.Image] | None]:
        """The conditions of each mode; a single pair has no shuffled ones."""
        shifted = {"shuffled": [*self.conditions[1:], self.conditions[0]]} if len(self.conditions) > 1 else {}
        return {"controlled": self.conditions, **shifted, "base": None}

    def generate(self, pipe: Pipeline, control: Control) -> Iterator[int]:
        """Generate the images of all modes, pair i with seed i; yield the number of finished images."""
        self.images.clear()
        for mode, conditions in self._modes.items():
            images = self.images.setdefault(mode, [])
            for start in range(0, len(self.prompts), self.batch_size):
                batch = slice(start, start + self.batch_size)
                prompts = list(self.prompts[batch])
                generators = [torch.Generator().manual_seed(start + index) for index in range(len(prompts))]
                guiding = control.guiding(pipe, conditions[batch], annotated=True) if conditions else nullcontext()
                with guiding:
                    images += images_of(pipe(prompt=prompts, generator=generators, **call_options(pipe, self.options)))
                yield sum(map(len, self.images.values()))

    def measure(
        self, annotator: Annotator, models: MetricModels | None = None, inception: Inception | None = None
    ) -> dict[str, dict[str, Estimate]]:
        """Compare the images of all modes with the pairs; return estimates by metric and mode."""
        rows: dict[str, dict[str, Estimate]] = {}
        for mode, images in {**self.images, "real": list(self.real)}.items():
            estimates = self._measure_mode(annotator, images, models)
            if inception and len(images) > 1:
                estimates[f"FID of {len(images)} images"] = self._frechet_distance(inception, images)
            for name, estimate in estimates.items():
                rows.setdefault(name, {})[mode] = estimate
        return rows

    def _frechet_distance(self, encoder: Encoder | Inception, images: list[Image.Image]) -> Estimate:
        """Return the distance to the real images, without an interval: resampling enlarges the distance."""
        value = frechet_distance(encoder.encode_images(self.real), encoder.encode_images(images))
        return Estimate(value=value, low=None, high=None, units=len(images))

    def _measure_mode(
        self, annotator: Annotator, images: list[Image.Image], models: MetricModels | None
    ) -> dict[str, Estimate]:
        estimates = condition_agreement(annotator, self.real, self.conditions, images)
        if self.masks:
            targets = [(np.asarray(mask.convert("L")) > 127).astype(np.int64) for mask in self.masks]
            predictions = [object_mask(np.asarray(image.convert("RGB"))) for image in images]
            agreement = label_agreement(targets, predictions)
            estimates |= {f"object and background, {name}": estimate for name, estimate in agreement.items()}
        if models:
            clip = models.clip
            vectors, texts = clip.encode_images(images), clip.encode_texts(list(self.prompts))
            estimates[f"prompt fidelity, CLIP-T ({clip.name})"] = bootstrap(similarity(vectors, texts))
            if len(images) > 1:
                estimates[f"Fréchet distance ({clip.name})"] = self._frechet_distance(clip, images)
            captions = models.vocabulary.attributes.get("object") if models.vocabulary else None
            if captions and self.objects:
                labels = classify(clip, vectors, captions)
                correct = [float(label == target) for label, target in zip(labels, self.objects, strict=True)]
                estimates[f"object accuracy ({clip.name})"] = bootstrap(correct)
        return estimates


def condition_agreement(
    annotator: Annotator,
    real: Sequence[Image.Image],
    conditions: Sequence[Image.Image],
    images: Sequence[Image.Image],
) -> dict[str, Estimate]:
    """Compare the conditions of images with their targets, by the annotator's kind of condition.

    Args:
        annotator: the control's annotator.
        real: real images of the conditions, for labels and landmarks.
        conditions: the target conditions.
        images: the images to annotate.

    Returns:
        Estimates by metric; none for an annotator that cannot read every image.
    """
    if isinstance(annotator, Landmarks):
        pairs = ((annotator.points(a), annotator.points(b)) for a, b in zip(real, images, strict=True))
        known = [(target, prediction) for target, prediction in pairs if target is not None]
        return landmark_agreement(*zip(*known, strict=True)) if known else {}
    if not annotator.reads_any_image:
        return {}  # generated images have no transparency, for example; see masks
    if isinstance(annotator, Segmentation):
        return label_agreement(*([annotator.label_map(image) for image in side] for side in (real, images)))
    targets = [np.asarray(condition.convert("RGB")) for condition in conditions]
    predictions = [np.asarray(annotator(image)) for image in images]
    if isinstance(annotator, Canny | Scribble | SoftEdge):
        edges = [[pixels[..., 0] for pixels in side] for side in (targets, predictions)]
        return {
            f"{annotator.name} {name}, within {tolerance} px": estimate
            for tolerance in (0, EDGE_TOLERANCE)
            for name, estimate in edge_agreement(edges[0], edges[1], tolerance).items()
        }
    depths = ([pixels / 255 for pixels in side] for side in (targets, predictions))
    return {f"{annotator.name}, RMSE": depth_agreement(*depths)}


def write_control_report(folder: Path, rows: Mapping[str, Mapping[str, Estimate]], about: Mapping[str, Any]) -> str:
    """Write metrics.json and metrics.md, both or none; return the Markdown.

    Args:
        folder: the output folder.
        rows: estimates by metric and mode.
        about: further entries for metrics.json, with the number of "pairs".

    Raises:
        OutputError: the folder is not writable.
    """
    method = f"In brackets 95 % bootstrap intervals. {about['pairs']} pairs, pair i with seed i."
    text = f"{method}\n\n{markdown_table(rows, MODES)}\n"
    record = {**about, "measures": {row: {mode: asdict(e) for mode, e in cells.items()} for row, cells in rows.items()}}
    write_together(
        {
            folder / METRICS: (json.dumps(record, indent=1) + "\n").encode(),
            folder / TABLE: text.encode(),
        }
    )
    return text
