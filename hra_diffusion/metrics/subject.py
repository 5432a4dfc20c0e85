"""Metrics of a subject: fidelity to subject and prompt, backgrounds, diversity, drift, in every mode."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from hra_diffusion.metrics import scores
from hra_diffusion.metrics.bootstrap import Estimate, FloatArray, bootstrap
from hra_diffusion.metrics.encoders import Encoder
from hra_diffusion.metrics.generation import Generations
from hra_diffusion.metrics.lpips import MIN_SIDE
from hra_diffusion.metrics.models import MetricModels
from hra_diffusion.metrics.report import MODES, Measurement, Report
from hra_diffusion.metrics.vocabulary import classify

GENERATED = tuple(mode for mode in MODES if mode != "real")


def measure_subject(generations: Generations, references: Sequence[Image.Image], models: MetricModels) -> Report:
    """Measure the generated images of both modes.

    Args:
        generations: all images of a plan, with the adapter and without.
        references: real images of the subject that were not trained on.
        models: the models of the metrics.
    """
    metrics = _SubjectMetrics(generations, references, models)
    measurements = [
        *metrics.subject_fidelity("CLIP-I", models.clip),
        *(metrics.subject_fidelity("DINO", models.dino) if models.dino else ()),
        *metrics.prompt_fidelity(),
        *metrics.background_accuracy(),
        *metrics.diversity(),
        *metrics.drift(),
    ]
    return Report(measurements=measurements, notes=metrics.notes, generations=generations, references=references)


class _SubjectMetrics:
    """The metrics of one report; CLIP's vectors of every group of images are computed once."""

    def __init__(self, generations: Generations, references: Sequence[Image.Image], models: MetricModels) -> None:
        self.plan = generations.plan
        self.notes = list(models.notes)
        self._generations, self._references, self._models = generations, references, models
        self._vectors = {
            (mode, group): models.clip.encode_images(images)
            for mode, groups in generations.images.items()
            for group, images in groups.items()
            if images
        }

    def subject_fidelity(self, method: str, encoder: Encoder) -> list[Measurement]:
        """Measure cosines to the real images, those among the real images, and the gap closed."""
        references = encoder.encode_images(self._references)
        values: dict[str, FloatArray] = {}
        for mode in GENERATED:
            is_clip = encoder is self._models.clip
            images = self._generations.images[mode]["subject"]
            vectors = self._vectors[mode, "subject"] if is_clip else encoder.encode_images(images)
            values[mode] = scores.fidelity(vectors, references)
        real = scores.agreement(references) if len(references) > 1 else None
        if real is not None:
            values["real"] = real
        name = f"subject fidelity, {method} ({encoder.name})"
        measurements = [self._measurement(name, mode, bootstrap(value)) for mode, value in values.items()]
        if real is not None and values["base"].mean() >= real.mean():
            self.notes.append(
                f"Gap closed, {method}, is not measured: the base model's images are as near to the real images as "
                "these are to each other, so that there is no gap."
            )
        elif real is not None:
            both = np.stack([values["adapter"], values["base"]], axis=1)
            closed = bootstrap(both, real, statistic=scores.gap_closed)
            measurements.append(self._measurement(f"gap closed, {method}", "adapter", closed))
        return measurements

    def prompt_fidelity(self) -> list[Measurement]:
        """Measure cosines to the prompts, with the class instead of the trigger word."""
        clip = self._models.clip
        texts = clip.encode_texts(self.plan.captions).repeat(len(self.plan.seeds), axis=0)
        return [
            self._measurement(
                f"prompt fidelity, CLIP-T ({clip.name})",
                mode,
                bootstrap(scores.similarity(self._vectors[mode, "subject"], texts)),
            )
            for mode in GENERATED
        ]

    def background_accuracy(self) -> list[Measurement]:
        """Measure the share of images with the prompt's background, classified by the judge."""
        vocabulary = self._models.vocabulary
        known = vocabulary.attributes.get("background", {}) if vocabulary else {}
        if not self.plan.contexts.keys() <= known.keys():
            return []
        targets = [label for label in self.plan.contexts for _ in self.plan.seeds]
        measurements = []
        for mode in GENERATED:
            labels = classify(self._models.clip, self._vectors[mode, "subject"], known)
            correct = [label == target for label, target in zip(labels, targets, strict=True)]
            measurements.append(self._measurement("background accuracy", mode, bootstrap(correct)))
        return measurements

    def diversity(self) -> list[Measurement]:
        """Measure distances between the images of a prompt; prompts are the units."""
        seeds, clip, lpips = len(self.plan.seeds), self._models.clip, self._models.lpips
        if seeds < 2:
            self.notes = [note for note in self.notes if not note.startswith("Diversity")]
            self.notes.append("Diversity is not measured: it needs two seeds or more.")
            return []
        if lpips and self.plan.resolution < MIN_SIDE:
            self.notes.append(f"Diversity is the distance in {clip.name}: LPIPS needs {MIN_SIDE} pixels.")
            lpips = None
        measurements = []
        for mode in GENERATED:
            if lpips:
                values = lpips.spread(self._generations.by_prompt(mode, "subject"))
            else:
                vectors = self._vectors[mode, "subject"]
                values = scores.spread(vectors.reshape(-1, seeds, vectors.shape[1]))
            name = f"diversity, {lpips.name if lpips else f'pairwise distance ({clip.name})'}"
            measurements.append(self._measurement(name, mode, bootstrap(values)))
        return measurements

    def drift(self) -> list[Measurement]:
        """Measure the adapter's change of class images and unrelated images, seed by seed."""
        return [
            self._measurement(
                f"drift, {group} ({self._models.clip.name})",
                "adapter",
                bootstrap(scores.drift(self._vectors["adapter", group], self._vectors["base", group])),
            )
            for group in ("class", "unrelated")
            if ("adapter", group) in self._vectors
        ]

    def _measurement(self, name: str, mode: str, estimate: Estimate) -> Measurement:
        seeds = [] if mode == "real" else list(self.plan.seeds)
        return Measurement(name=name, mode=mode, estimate=estimate, seeds=seeds)
