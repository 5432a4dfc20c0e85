"""From drawings to numbers: each metric once for every mode it exists in."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from hra_diffusion.metrics import scores
from hra_diffusion.metrics.bootstrap import Estimate, FloatArray, bootstrap
from hra_diffusion.metrics.encoders import Encoder
from hra_diffusion.metrics.generation import Generations
from hra_diffusion.metrics.instruments import Instruments
from hra_diffusion.metrics.lpips import SMALLEST
from hra_diffusion.metrics.report import MODES, Measure, Report
from hra_diffusion.metrics.vocabulary import classify

DRAWN = tuple(mode for mode in MODES if mode != "real")


def evaluate(drawings: Generations, references: Sequence[Image.Image], instruments: Instruments) -> Report:
    """Measure what was drawn in both modes.

    Args:
        drawings: all images of a plan, with the adapter and without.
        references: real images of the subject that the adapter has not seen.
        instruments: what measures them.
    """
    evaluation = _Evaluation(drawings, references, instruments)
    measures = [
        *evaluation.subject_fidelity("CLIP-I", instruments.clip),
        *(evaluation.subject_fidelity("DINO", instruments.dino) if instruments.dino else ()),
        *evaluation.prompt_fidelity(),
        *evaluation.backgrounds(),
        *evaluation.diversity(),
        *evaluation.drifts(),
    ]
    return Report(measures=measures, notes=evaluation.notes, drawings=drawings, references=references)


class _Evaluation:
    """Holds what several metrics need: CLIP's vectors of every group of images, encoded once."""

    def __init__(self, drawings: Generations, references: Sequence[Image.Image], instruments: Instruments) -> None:
        self.plan = drawings.plan
        self.notes = list(instruments.notes)
        self._drawings, self._references, self._instruments = drawings, references, instruments
        self._vectors = {
            (mode, group): instruments.clip.images(images)
            for mode, groups in drawings.images.items()
            for group, images in groups.items()
            if images
        }

    def subject_fidelity(self, method: str, encoder: Encoder) -> list[Measure]:
        """Cosines to the real images; how the real ones agree; and how much of the way an adapter goes."""
        references = encoder.images(self._references)
        values: dict[str, FloatArray] = {}
        for mode in DRAWN:
            is_clip = encoder is self._instruments.clip
            images = self._vectors[mode, "subject"] if is_clip else encoder.images(self._subject(mode))
            values[mode] = scores.fidelity(images, references)
        real = scores.agreement(references) if len(references) > 1 else None
        if real is not None:
            values["real"] = real
        name = f"subject fidelity, {method} ({encoder.name})"
        measures = [self._measure(name, mode, bootstrap(value)) for mode, value in values.items()]
        if real is not None:
            both = np.stack([values["adapter"], values["base"]], axis=1)
            closed = bootstrap(both, real, statistic=scores.gap_closed)
            measures.append(self._measure(f"way from base to real, {method}", "adapter", closed))
        return measures

    def prompt_fidelity(self) -> list[Measure]:
        """Cosines to the prompts, the class's word standing for the rare one."""
        clip = self._instruments.clip
        texts = clip.texts(self.plan.captions).repeat(len(self.plan.seeds), axis=0)
        return [
            self._measure(
                f"prompt fidelity, CLIP-T ({clip.name})",
                mode,
                bootstrap(scores.paired(self._vectors[mode, "subject"], texts)),
            )
            for mode in DRAWN
        ]

    def backgrounds(self) -> list[Measure]:
        """The share of images whose background the judge takes for the one that was asked for."""
        vocabulary = self._instruments.vocabulary
        known = vocabulary.attributes.get("background", {}) if vocabulary else {}
        if not self.plan.contexts.keys() <= known.keys():
            return []
        wanted = [label for label in self.plan.contexts for _ in self.plan.seeds]
        measures = []
        for mode in DRAWN:
            found = classify(self._instruments.clip, self._vectors[mode, "subject"], known)
            right = [label == asked for label, asked in zip(found, wanted, strict=True)]
            measures.append(self._measure("background accuracy", mode, bootstrap(right)))
        return measures

    def diversity(self) -> list[Measure]:
        """Distances between the images of a prompt; prompts are the units."""
        seeds, clip, lpips = len(self.plan.seeds), self._instruments.clip, self._instruments.lpips
        if seeds < 2:
            self.notes = [note for note in self.notes if not note.startswith("Diversity")]
            self.notes.append("Diversity is not measured: it takes two seeds or more.")
            return []
        if lpips and self.plan.resolution < SMALLEST:
            self.notes.append(f"Diversity is the distance in {clip.name}: LPIPS needs {SMALLEST} pixels.")
            lpips = None
        measures = []
        for mode in DRAWN:
            if lpips:
                values = lpips.spread(self._drawings.by_prompt(mode, "subject"))
            else:
                vectors = self._vectors[mode, "subject"]
                values = scores.spread(vectors.reshape(-1, seeds, vectors.shape[1]))
            name = f"diversity, {lpips.name if lpips else f'pairwise distance ({clip.name})'}"
            measures.append(self._measure(name, mode, bootstrap(values)))
        return measures

    def drifts(self) -> list[Measure]:
        """How far an adapter moves images of the class and of unrelated things, seed by seed."""
        return [
            self._measure(
                f"drift, {group} ({self._instruments.clip.name})",
                "adapter",
                bootstrap(scores.drift(self._vectors["adapter", group], self._vectors["base", group])),
            )
            for group in ("class", "unrelated")
            if ("adapter", group) in self._vectors
        ]

    def _subject(self, mode: str) -> list[Image.Image]:
        return self._drawings.images[mode]["subject"]

    def _measure(self, name: str, mode: str, estimate: Estimate) -> Measure:
        return Measure(name=name, mode=mode, estimate=estimate, seeds=[] if mode == "real" else list(self.plan.seeds))
